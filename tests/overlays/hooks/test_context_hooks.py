"""The fast ways are held to the plain one."""

import pytest
import torch
from torch import nn

import velatura
from velatura.overlays.structure import ACTIVATIONS

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
BATCH_WIDE = {"softmax", "softmin", "logsoftmax", "softmax2d"}


@pytest.fixture
def predict(tiny):
    """Predict the noise of a fixed batch; with gradients on, overlays compute plainly."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    context = tiny.text.encode(["a red house", "a boat at night"]).detach()

    def say(*, plain: bool = False):
        with torch.set_grad_enabled(plain):
            return tiny.predict(latents, torch.tensor(500), context).detach()

    return say


def strong(overlay, deviation=0.05):
    """The overlay with weights that show in a picture, biases and norms included."""
    generator = torch.Generator().manual_seed(1)
    for weight in overlay.parameters():
        nn.init.normal_(weight, std=deviation, generator=generator)
    return overlay


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS.keys() - {"hardshrink"}))
def test_every_activation_is_the_same_the_fast_way(tiny, hyper, predict, activation):
    overlay = strong(hyper(activation=activation, activate_output=True))
    before = predict()
    with velatura.attach(tiny, overlay, 0.7):
        fast, plain = predict(), predict(plain=True)
    torch.testing.assert_close(fast, plain, **TOLERANCE)
    assert not torch.equal(fast, before)


def test_an_activation_that_jumps_is_the_same_where_its_context_is(tiny, hyper):
    """Hardshrink's steps blow up the last bit of what is before them, so one layer is compared, not the whole UNet."""
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn1
    context = torch.randn(2, 16, 192, generator=torch.Generator().manual_seed(0))
    with velatura.attach(tiny, strong(hyper(activation="hardshrink", activate_output=True)), 0.7):
        plain = layer.to_k(context), layer.to_v(context)
        with torch.no_grad():
            fast = layer.to_k(context), layer.to_v(context)
    for one, other in zip(fast, plain, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {"layers": (1, 1)},
        {"layers": (1, 2, 2, 1), "dropout": 0.3},
        {"layers": (1, 0.5, 1), "activation": "relu", "layer_norm": True},
        {"layers": (1, 2, 1), "activation": "tanh"},
        {"layer_norm": True},
    ],
    ids=str,
)
def test_every_structure_is_the_same_the_fast_way(tiny, hyper, predict, options):
    with velatura.attach(tiny, strong(hyper(**options)), 1.3):
        torch.testing.assert_close(predict(), predict(plain=True), **TOLERANCE)


def kinds(hyper):
    return {"linear": strong(hyper()), "relu": strong(hyper(activation="relu"))}


@pytest.mark.parametrize("order", ["linear linear", "linear relu", "relu linear", "relu linear linear", "relu relu"])
def test_several_in_any_order_are_the_same_the_fast_way(tiny, hyper, predict, order):
    overlays = kinds(hyper)
    attachments = [velatura.attach(tiny, overlays[name], 0.5 + 0.2 * i) for i, name in enumerate(order.split())]
    torch.testing.assert_close(predict(), predict(plain=True), **TOLERANCE)
    attachments[0].strength = -0.4
    torch.testing.assert_close(predict(), predict(plain=True), **TOLERANCE)
    for attachment in attachments:
        attachment.detach()


def test_linear_networks_cost_no_product_of_their_own(tiny, hyper, predict, monkeypatch):
    overlay = strong(hyper())
    with velatura.attach(tiny, overlay, 0.7) as attachment:
        predict()  # the first step is measured
        calls = []
        for part in ("k", "v"):
            transform = f"velatura.overlays.transform.WidthChange.{part}"
            monkeypatch.setattr(transform, lambda *_: calls.append(1))
        monkeypatch.setattr("velatura.overlays.transform.WidthChange.k_and_v", lambda *_, **__: calls.append(1))
        folded = predict()
        attachment.strength = 0.2
        assert not torch.equal(predict(), folded)
        attachment.strength = 0.7
        assert torch.equal(predict(), folded)
    assert not calls


def test_what_is_folded_is_no_part_of_the_base(tiny, hyper, predict):
    weights = {name: tensor.clone() for name, tensor in tiny.unet.state_dict().items()}
    with velatura.attach(tiny, strong(hyper()), 0.7):
        predict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in tiny.unet.state_dict().items())
    assert not any("forward" in vars(module) for module in tiny.unet.modules())


def test_new_weights_of_the_base_are_folded_anew(tiny, hyper, predict):
    projection = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v
    own = projection.weight.detach().clone()
    with velatura.attach(tiny, strong(hyper())), torch.no_grad():
        before = predict()
        projection.weight.mul_(1.5)
        try:
            assert not torch.equal(predict(), before)
            torch.testing.assert_close(predict(), predict(plain=True), **TOLERANCE)
        finally:
            projection.weight.copy_(own)
        assert torch.equal(predict(), before)


def test_new_weights_of_the_overlay_count(tiny, hyper, predict):
    for overlay in kinds(hyper).values():
        with velatura.attach(tiny, overlay):
            before = predict()
            with torch.no_grad():
                next(overlay.parameters()).add_(0.1)
            assert not torch.equal(predict(), before)
            torch.testing.assert_close(predict(), predict(plain=True), **TOLERANCE)


def test_whoever_listens_to_a_projection_hears_what_it_reads(tiny, hyper, predict):
    """A LoRA's delta must be of the context that the hypernetwork made, so nothing may be folded past it."""
    projection = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v
    contexts = []
    handle = projection.register_forward_hook(lambda _layer, arguments, _output: contexts.append(arguments[0]))
    context = tiny.text.encode(["a red house", "a boat at night"]).detach()
    overlay = strong(hyper())
    with velatura.attach(tiny, overlay, 0.7):
        torch.testing.assert_close(predict(), predict(plain=True), **TOLERANCE)
    handle.remove()
    for read in contexts:
        torch.testing.assert_close(read, overlay.transform(context, 0.7)[1])


def test_a_processor_that_asks_for_v_first_is_served_too(tiny, hyper):
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    context = torch.randn(2, 77, 96)
    overlay = strong(hyper(activation="relu"))
    with torch.no_grad(), velatura.attach(tiny, overlay, 0.7):
        torch.testing.assert_close(
            layer.to_v(context), nn.functional.linear(overlay.transform(context, 0.7)[1], layer.to_v.weight)
        )
        layer.to_k(context)
        other = torch.randn(2, 77, 96)  # what was passed on for one context is not taken for another
        torch.testing.assert_close(
            layer.to_v(other), nn.functional.linear(overlay.transform(other, 0.7)[1], layer.to_v.weight)
        )


def test_a_constant_context_is_evaluated_once(tiny, hyper):
    overlay, context = strong(hyper(activation="relu", widths=[96])), tiny.text.encode(["a cat"]).detach()
    with torch.no_grad(), velatura.attach(tiny, overlay, 0.7) as attachment:
        for time in (900, 500, 100):
            tiny.predict(torch.ones(1, 4, 16, 16), torch.tensor(time), context)
            attachment.strength = 0.7 - time / 9000
        assert attachment.effect.evaluations == 1
        context.mul_(1.1)  # the same tensor, but no longer the same context
        tiny.predict(torch.ones(1, 4, 16, 16), torch.tensor(50), context)
        assert attachment.effect.evaluations == 2


def test_memory_keeps_a_few_contexts_only(tiny, hyper):
    overlay = strong(hyper(activation="relu", widths=[96]))
    layer = tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    with torch.no_grad(), velatura.attach(tiny, overlay) as attachment:
        contexts = [torch.randn(1, 77, 96) for _ in range(20)]
        for _ in range(2):
            for context in contexts:
                layer.to_k(context)
        assert attachment.effect.evaluations == 40
        for context in contexts[-8:]:
            layer.to_k(context)
        assert attachment.effect.evaluations == 40


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_inference_mode_is_served_without_memory(tiny, hyper, activation):
    overlay, latents = strong(hyper(activation=activation)), torch.ones(1, 4, 16, 16)
    with velatura.attach(tiny, overlay):
        with torch.no_grad():
            context = tiny.text.encode(["a cat"])
            expected = tiny.predict(latents, torch.tensor(3), context)
        with torch.inference_mode():
            context = tiny.text.encode(["a cat"])
            prediction = tiny.predict(latents, torch.tensor(3), context)
    torch.testing.assert_close(prediction.clone(), expected, **TOLERANCE)


@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_half_precision_follows_the_plain_way(tiny, hyper, activation):
    overlay, latents = strong(hyper(activation=activation)), torch.ones(2, 4, 16, 16)
    context = tiny.text.encode(["a cat", ""]).detach()
    base = velatura.tiny().to(dtype=torch.bfloat16)
    with velatura.attach(base, overlay, 0.7):
        plain = base.predict(latents, torch.tensor(3), context).detach()
        with torch.no_grad():
            fast = base.predict(latents, torch.tensor(3), context)
    torch.testing.assert_close(fast, plain, rtol=0.05, atol=0.05)
    assert not torch.isnan(fast).any()


@pytest.fixture
def projection(tiny):
    return tiny.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v


def wrapped(projection):
    """Put a forward of one's own on a projection, as offloading does, and give it back."""
    inner = projection.forward

    def theirs(context):
        return inner(context)

    projection.forward = theirs
    return theirs


def test_a_forward_of_somebodys_own_keeps_nothing_from_acting(tiny, hyper, predict, projection):
    overlay = strong(hyper())
    with velatura.attach(tiny, overlay, 0.7):
        expected = predict()
    theirs = wrapped(projection)
    with velatura.attach(tiny, overlay, 0.7):
        torch.testing.assert_close(predict(), expected, **TOLERANCE)
    assert projection.forward is theirs
    del projection.forward


def test_a_forward_wrapped_around_ours_survives_detaching_and_is_off_then(tiny, hyper, predict, projection):
    overlay, off = strong(hyper()), predict()
    with velatura.attach(tiny, overlay, 0.7):
        expected = predict()
        theirs = wrapped(projection)
        torch.testing.assert_close(predict(), expected, **TOLERANCE)
    assert projection.forward is theirs
    assert torch.equal(predict(), off)
    del projection.forward


def test_a_listener_that_goes_away_changes_nothing(tiny, hyper, predict, projection):
    handle = projection.register_forward_pre_hook(lambda *_: None)
    with velatura.attach(tiny, strong(hyper()), 0.7):
        expected = predict()
        handle.remove()
        torch.testing.assert_close(predict(), expected, **TOLERANCE)
