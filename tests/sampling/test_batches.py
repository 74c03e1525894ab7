"""Which pictures are made at once where an overlay sums over the batch: the softmax family, as A1111 has it."""

import numpy as np
import pytest

import velatura
from velatura.overlays.composition import Composition, Leaf, Series
from velatura.overlays.structure import ACTIVATIONS
from velatura.sampling.recipe.recipe import Recipe

FAMILY = {"softmax", "softmin", "logsoftmax", "softmax2d"}
TWO = [Recipe(prompt=f"a {colour} house <hypernet:it:1>", steps=2, seed=7) for colour in ("red", "blue")]


def pixels(picture):
    return np.asarray(picture.image).astype(int)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_only_the_softmax_family_mixes_rows(hyper, activation):
    assert hyper(activation=activation).is_batch_dependent is (activation in FAMILY)


def test_an_activation_that_stands_nowhere_mixes_nothing(hyper):
    assert not hyper(activation="softmax", layers=(1, 1)).is_batch_dependent
    assert hyper(activation="softmax", layers=(1, 1), activate_output=True).is_batch_dependent


def test_a_composition_mixes_rows_where_a_member_does(hyper):
    members = {"a": hyper(), "b": hyper(activation="softmax")}
    assert Composition(Series((Leaf("a"), Leaf("b"))), members).is_batch_dependent
    assert not Composition(Leaf("a"), members).is_batch_dependent


@pytest.mark.parametrize("activation", ["softmax", "relu"])
def test_pictures_are_what_they_are_alone(tiny, hyper, activation):
    overlays = {"it": hyper(activation=activation)}
    together = velatura.generate_many(tiny, TWO, overlays=overlays)
    alone = [velatura.generate(tiny, recipe, overlays=overlays) for recipe in TWO]
    for one, other in zip(together, alone, strict=True):
        assert np.abs(pixels(one) - pixels(other)).max() <= (0 if activation == "softmax" else 1)
