"""The pictures of options in docs/hypernetworks.md: one strip for each option, and each strip is shown."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tools.pictures_of_options import IMAGES, LABELS, OPTIONS, START_OPTIONS, STRENGTHS, figures, make_network, strip
from velatura.sampling.image_grid import draw_grid

PAGE = Path(__file__).parents[2] / "docs" / "hypernetworks.md"
STRIPS = [*OPTIONS, *(f"strength-{each}" for each in STRENGTHS)]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_makes_another_network_than_the_start(tiny, option):
    made, start = make_network(tiny, option).card, make_network(tiny, "start").card
    assert (made.outline != start.outline or made.structure["init"] != start.structure["init"]) is (option != "start")
    assert OPTIONS[option].items().isdisjoint(START_OPTIONS.items())


def test_strips_are_equally_wide_whatever_their_label():
    pictures = [Image.new("RGB", (64, 64), "teal")] * 4
    widths = {strip(label, pictures).width for label in LABELS.values()}
    assert len(widths) == 1
    assert widths.pop() >= max(draw_grid([pictures], rows=[label]).width for label in LABELS.values())


@pytest.mark.parametrize("name", STRIPS)
def test_every_strip_is_there_and_shown(name):
    with Image.open(IMAGES / f"{name}.webp") as picture:
        assert picture.format == "WEBP"
    assert f"(images/options/{name}.webp)" in PAGE.read_text("utf-8")


def test_all_strips_together_stay_small():
    assert sum(path.stat().st_size for path in IMAGES.iterdir()) < 2**20


def test_figures_tell_the_mean_loss_at_the_end(tiny, tmp_path):
    log = tmp_path / "log.jsonl"
    steps = [{"step": step, "loss": float(step > 100), "rate": 1, "seconds": step} for step in range(1, 201)]
    log.write_text("\n".join(map(json.dumps, [{"begins": True}, *steps])))
    said = figures(make_network(tiny, "prompt-only"), log).split()
    assert said == ["prompt-only", f"{2 * (96 * 192 * 2 + 192 + 96):,}", "parameters", "loss", "1.0000", "200", "s"]
