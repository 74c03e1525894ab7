"""What is asked of attach by mistake is refused by name, and never taken for something else."""

import pytest
import torch

import velatura
from velatura.errors import BadOverlay, BadStrength, NoEffect, UnknownName


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on": "positive"}, "no side of a guided batch is called 'positive'"),
        ({"blocks": ["middle"]}, "no block of a UNet is called 'middle': did you mean 'mid'"),
        ({"blocks": "mid"}, "no block of a UNet is called 'm'"),
    ],
)
def test_an_option_that_does_not_exist(tiny, hyper, options, message):
    with pytest.raises(UnknownName, match=message):
        velatura.attach(tiny, hyper(), **options)
    with pytest.raises(UnknownName, match=message):
        velatura.attach_all(tiny, [velatura.AttachSpec(hyper(), **options)])


def test_a_way_to_combine_that_does_not_exist(tiny, hyper):
    with pytest.raises(UnknownName, match="no way to combine overlays is called 'mean'"):
        velatura.attach_all(tiny, [velatura.AttachSpec(hyper())], combine="mean")


def test_no_blocks_at_all(tiny, hyper):
    with pytest.raises(NoEffect, match="because blocks is empty"):
        velatura.attach(tiny, hyper(), blocks=[])


@pytest.mark.parametrize("strength", ["0.5", None, {}, [[1], [1, 2]], 1j], ids=str)
def test_a_strength_that_is_no_number(tiny, hyper, strength):
    with pytest.raises(BadStrength, match="0 is off, 1 is as trained"):
        velatura.attach(tiny, hyper(), strength)
    with velatura.attach(tiny, hyper(), 0.5) as attachment:
        with pytest.raises(BadStrength, match="0 is off, 1 is as trained"):
            attachment.strength = strength
        assert attachment.strength == torch.tensor(0.5)


def test_a_path_in_place_of_an_overlay(tiny):
    with pytest.raises(BadOverlay, match=r"a str is not an overlay: open its file with velatura\.open_overlay"):
        velatura.attach(tiny, "inca.pt")
