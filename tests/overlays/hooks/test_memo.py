"""While a hypernetwork is trained, layers that read the same context evaluate it once, and learn the same as before."""

import pytest
import torch

import velatura
from velatura.overlays import transform


@pytest.fixture
def evaluations(monkeypatch):
    """The widths of all contexts that networks were run on."""
    seen, forward = [], transform.HypernetworkModule.forward

    def counted(self, context, strength):
        seen.append(context.shape[-1])
        return forward(self, context, strength)

    monkeypatch.setattr(transform.HypernetworkModule, "forward", counted)
    return seen


@pytest.fixture
def inputs(tiny):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return latents, torch.tensor([100, 700]), torch.randn(2, 77, tiny.family.cross_width, generator=generator)


def gradients(tiny, overlay, inputs):
    latents, timesteps, context = inputs
    overlay.zero_grad()
    loss = tiny.unet(latents, timesteps, context, return_dict=False)[0].square().mean()
    loss.backward()
    return [weight.grad.clone() for weight in overlay.parameters()]


def test_the_context_of_all_layers_is_evaluated_once_a_step(tiny, hyper, inputs, evaluations):
    overlay = hyper(activation="relu")
    with velatura.attach(tiny, overlay):
        overlay.train()
        for steps in (1, 2):
            gradients(tiny, overlay, inputs)
            assert evaluations.count(tiny.family.cross_width) == 2 * steps  # K and V
    assert evaluations.count(64) > 4  # self-attention reads what each layer has


def test_gradients_are_those_of_every_layer_by_itself(tiny, hyper, inputs, monkeypatch):
    overlay = hyper(activation="relu")
    with velatura.attach(tiny, overlay):
        overlay.train()
        shared = gradients(tiny, overlay, inputs)
        again = gradients(tiny, overlay, inputs)
        monkeypatch.setattr(transform.WidthChange, "shared_cache", None)
        alone = gradients(tiny, overlay, inputs)
    for one, two, three in zip(shared, again, alone, strict=True):
        assert torch.equal(one, two)
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-6)


def test_weights_that_moved_are_evaluated_anew(tiny, hyper, inputs):
    overlay = hyper(activation="relu")
    latents, timesteps, context = inputs
    with velatura.attach(tiny, overlay):
        overlay.train()
        before = tiny.unet(latents, timesteps, context, return_dict=False)[0]
        with torch.no_grad():
            for weight in overlay.parameters():
                weight.mul_(1.5)
        assert not torch.equal(tiny.unet(latents, timesteps, context, return_dict=False)[0], before)


def test_checkpointing_computes_each_layer_again(tiny, hyper, inputs):
    overlay = hyper(activation="relu")
    with velatura.attach(tiny, overlay):
        overlay.train()
        plain = gradients(tiny, overlay, inputs)
        tiny.unet.enable_gradient_checkpointing()
        tiny.unet.train()  # diffusers checkpoints a model in train mode only
        try:
            checkpointed = gradients(tiny, overlay, inputs)
        finally:
            tiny.unet.disable_gradient_checkpointing()
            tiny.unet.eval()
    for one, two in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"activation": "relu", "dropout": 0.3}, {"activation": "rrelu"}])
def test_networks_that_draw_chance_draw_it_for_each_layer(tiny, hyper, inputs, evaluations, options):
    overlay = hyper(**options)
    with velatura.attach(tiny, overlay):
        overlay.train()
        gradients(tiny, overlay, inputs)
    assert evaluations.count(tiny.family.cross_width) > 2
