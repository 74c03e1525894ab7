"""Held to what the webui reckoned when it was run (tests/data/a1111/hires.json, denoising_steps.json)."""

import json
from pathlib import Path

import pytest

from velatura.sampling.recipe.sizes import Resolution, compute_hires_target, setup_img2img_steps

DATA = Path(__file__).parents[2] / "data" / "a1111"


def cases(name):
    return json.loads((DATA / name).read_text())["cases"]


@pytest.mark.parametrize("case", [case for case in cases("hires.json") if not case["old_behaviour"]])
def test_a_second_pass_has_the_size_that_the_webui_gives_it(case):
    first, wanted = Resolution(case["width"], case["height"]), Resolution(case["resize_x"], case["resize_y"])
    found = compute_hires_target(first, case["scale"], wanted)
    assert list(first) == case["first_pass"]
    assert (list(found.upscale_to), list(found.truncate)) == (case["upscale_to"], case["truncate_latent"])


@pytest.mark.parametrize("case", cases("denoising_steps.json"))
def test_a_begun_picture_takes_the_steps_that_the_webui_takes(case):
    steps, denoising, exact, explicit, *expected = case
    exactly = explicit or steps if exact or explicit is not None else None
    assert list(setup_img2img_steps(steps, denoising, exact_steps=exactly)) == expected
