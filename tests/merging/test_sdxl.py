"""Overlays go into the weights of a base with two text towers as they do elsewhere."""

import torch

import velatura
from velatura.merging.bake.bake import bake

PROMPTS = ["a red fox", "a lighthouse at dusk", "a robot", "a small house in the snow"]


@torch.no_grad()
def prediction(base):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    return base.predict(latents, torch.tensor(400), base.text.conditioning(["an owl on a branch"]))


def overlay(xl, activation):
    return velatura.Hypernetwork.for_base(xl, widths=[40, 64], activation=activation, init="xavier_normal", seed=1)


def test_a_linear_hypernetwork_is_baked_exactly(xl):
    net = overlay(xl, "linear")
    baked, report = bake(xl, [(net, 0.7)], prompts=PROMPTS, steps=2)
    plain = prediction(xl)
    with velatura.attach(xl, net, 0.7):
        attached = prediction(xl)
    torch.testing.assert_close(prediction(baked), attached, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(attached, plain, atol=1e-3)
    assert report.output < 1e-4
    assert len(baked.text.encoders) == 2


def test_another_is_fitted_and_the_loss_is_told(xl):
    _, report = bake(xl, [(overlay(xl, "relu"), 0.5)], prompts=PROMPTS, steps=2)
    assert 0 < report.output < 1
    assert report.held_out_prompts == 1
