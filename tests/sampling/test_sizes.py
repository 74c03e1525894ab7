"""Held to what the webui reckoned when it was run (tests/data/a1111/hires.json, denoising_steps.json)."""

import json
from pathlib import Path

import pytest

from velatura.sampling.sizes import Size, old_first_pass, second_pass, steps_left

DATA = Path(__file__).parents[1] / "data" / "a1111"


def cases(name):
    return json.loads((DATA / name).read_text())["cases"]


@pytest.mark.parametrize("case", cases("hires.json"))
def test_a_second_pass_has_the_size_that_the_webui_gives_it(case):
    first, wanted = Size(case["width"], case["height"]), Size(case["resize_x"], case["resize_y"])
    if case["old_behaviour"]:
        first, wanted = old_first_pass(first), first
    found = second_pass(first, case["scale"], wanted)
    assert list(first) == case["first_pass"]
    assert (list(found.enlarged), list(found.surplus)) == (case["upscale_to"], case["truncate_latent"])


@pytest.mark.parametrize("case", cases("denoising_steps.json"))
def test_a_begun_picture_takes_the_steps_that_the_webui_takes(case):
    steps, denoising, exact, explicit, *expected = case
    exactly = explicit or steps if exact or explicit is not None else None
    assert list(steps_left(steps, denoising, exactly=exactly)) == expected
