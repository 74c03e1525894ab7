"""Bake compositions of hypernetworks."""

import pytest
import torch

import velatura
from tests.merging.predictions import CALIBRATION_PROMPTS, predict_noise, relative_difference
from velatura.merging.bake.bake import bake
from velatura.overlays.composition import Blend, Composition, Leaf, Series

TREES = {
    "series": Series((Leaf("a", 0.5), Leaf("b", -0.3), Leaf("a"))),
    "blend": Blend((Leaf("a", 0.8), Leaf("b")), (1, 3)),
    "nested": Series((Leaf("b", 0.4), Blend((Series((Leaf("a"), Leaf("b", 0.2))), Leaf("a", 0.6)), (2, 1)))),
}


@pytest.mark.parametrize("tree", TREES)
def test_linear_ones_go_into_weights_exactly(tiny, hyper, tree):
    members = {"a": hyper(), "b": hyper(seed=5, widths=(64, 96))}
    overlay = Composition(TREES[tree], members, tree)
    plain = predict_noise(tiny)
    with velatura.attach(tiny, overlay, 0.6):
        attached = predict_noise(tiny)
    baked, report = bake(tiny, [(overlay, 0.6)], prompts=CALIBRATION_PROMPTS, steps=1)
    assert relative_difference(attached, plain) > 0.01
    assert relative_difference(predict_noise(baked), attached) < 1e-5
    assert report.is_exact
    assert report.strengths == ((tree, 0.6),)
    assert torch.equal(predict_noise(tiny), plain)


def test_beside_others_they_act_in_order(tiny, hyper):
    mixed = Composition(TREES["blend"], {"a": hyper(), "b": hyper(seed=5)}, "mixed")
    overlays = [(hyper(seed=3), 0.5), (mixed, -0.4)]
    with velatura.attach(tiny, *overlays[0]), velatura.attach(tiny, *overlays[1]):
        attached = predict_noise(tiny)
    baked, _ = bake(tiny, overlays, prompts=CALIBRATION_PROMPTS, steps=1)
    assert relative_difference(predict_noise(baked), attached) < 1e-5


def test_others_are_fitted_and_the_loss_told(tiny, hyper):
    overlay = Composition(TREES["series"], {"a": hyper(activation="relu"), "b": hyper(seed=5)}, "bent")
    with velatura.attach(tiny, overlay, 0.5):
        attached = predict_noise(tiny)
    baked, report = bake(tiny, [(overlay, 0.5)], prompts=CALIBRATION_PROMPTS, steps=1)
    assert not report.is_exact
    assert 0 < report.output_missed < 0.5
    assert relative_difference(predict_noise(baked), attached) < 0.5 * relative_difference(
        predict_noise(tiny), attached
    )
