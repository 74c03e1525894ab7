"""What a recipe asks of a base that it was not trained for is warned of before the first step."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest

from velatura.base.families import FAMILIES
from velatura.errors import VelaturaWarning
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.validate import warn_of_unusual_size


def base_of(family, pixels=None):
    known = FAMILIES[family]
    return SimpleNamespace(name=family, family=replace(known, default_pixels=pixels or known.default_pixels))


@pytest.mark.parametrize(
    ("family", "width", "height", "message"),
    [
        ("SD1", 1024, 1024, "pictures of 512 x 512 pixels, and 1024 x 1024 is 2 times .* appear twice; hires_scale"),
        ("SD1", 512, 1536, "512 x 1536 is 3 times that along one side"),
        ("SD1", 256, 512, "256 x 512 is 0.5 times that along one side: pictures are usually cut off"),
        ("SD1", 512, 1024, "512 x 1024 is 2 times that along one side: subjects usually appear twice"),
        ("SD1", 832, 1216, "832 x 1216 is 2.4 times"),
        ("SDXL", 2048, 2048, "2048 x 2048 is 2 times"),
        ("SDXL", 512, 4096, "512 x 4096 is 4 times"),
        ("SDXL", 256, 1024, "256 x 1024 is 0.25 times"),
        ("tiny", 96, 64, "tiny was trained on pictures of 64 x 64 pixels, and 96 x 64 is 1.5 times"),
        ("tiny", 64, 32, "64 x 32 is 0.5 times"),
    ],
)
def test_a_size_far_from_that_of_the_training_is_warned_of(family, width, height, message):
    with pytest.warns(VelaturaWarning, match=message):
        warn_of_unusual_size(base_of(family), Recipe(width=width, height=height))


@pytest.mark.parametrize(
    ("family", "width", "height"),
    [
        ("SD1", 512, 768),
        ("SD1", 384, 512),
        ("SD1", 512, 832),
        ("SD1", 896, 512),
        ("SD1", 640, 960),
        ("SD1", 768, 768),
        ("SD1", 768, 1024),
        ("SDXL", 1536, 1536),
        ("SD1", None, None),
        ("SD2", 768, 1152),
        ("SDXL", 2048, 512),
        ("tiny", 64, 64),
    ],
)
def test_a_size_that_people_use_is_not_warned_of(family, width, height):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unusual_size(base_of(family), Recipe(width=width, height=height))
