"""Bake overlays into a base with two text encoders."""

import torch

import velatura
from tests.merging.predictions import CALIBRATION_PROMPTS, predict_noise
from velatura.merging.bake.bake import bake


def overlay(xl, activation):
    return velatura.Hypernetwork.for_base(xl, widths=[40, 64], activation=activation, init="xavier_normal", seed=1)


def test_a_linear_hypernetwork_is_baked_exactly(xl):
    net = overlay(xl, "linear")
    baked, report = bake(xl, [(net, 0.7)], prompts=CALIBRATION_PROMPTS, steps=2)
    plain = predict_noise(xl)
    with velatura.attach(xl, net, 0.7):
        attached = predict_noise(xl)
    torch.testing.assert_close(predict_noise(baked), attached, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(attached, plain, atol=1e-3)
    assert report.output < 1e-4
    assert len(baked.text.encoders) == 2


def test_another_is_fitted_and_the_loss_is_told(xl):
    _, report = bake(xl, [(overlay(xl, "relu"), 0.5)], prompts=CALIBRATION_PROMPTS, steps=2)
    assert 0 < report.output < 1
    assert report.held_out_prompts == 1
