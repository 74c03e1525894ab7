"""The table of structures in docs/structures.md: what is compared, and that it is all there."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tools import compare_structures as tool
from tools.structure_measures import VisionMeasures
from velatura.tiny import tiny_pictures

PAGE = Path(__file__).parents[2] / "docs" / "structures.md"


@pytest.mark.parametrize("choice", [each for each in tool.CHOICES if each.zero_last], ids=lambda each: each.name)
def test_a_network_whose_last_layer_is_zero_begins_as_nothing(tiny, choice):
    overlay = tool.make_network(tiny, choice)
    context = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(each, context) for each in overlay.transform(context))
    assert any(weight.abs().max() > 0 for weight in overlay.parameters())


def test_every_choice_is_another_network(tiny):
    cards = {str(tool.make_network(tiny, choice).card.structure) for choice in tool.CHOICES}
    assert len(cards) == len(tool.CHOICES)


def test_every_row_is_of_something_that_is_compared():
    shown = PAGE.read_text("utf-8").partition(tool.BEGIN)[2].partition(tool.END)[0]
    rows = {line.split("|")[1].strip() for line in shown.splitlines()[2:]}
    assert rows <= {tool.BARE_ROW, tool.DRAWN_ROW, *(choice.name for choice in tool.CHOICES)}
    assert rows >= {
        tool.BARE_ROW,
        tool.DRAWN_ROW,
        *(f"1,2,1 {activation}" for activation in tool.ACTIVATIONS),
        "1,2,2,1 relu",
    }


def test_the_table_begins_with_the_lowest_loss():
    rows = {"a": tool.Figures(0.2, 0.5, 1.0, 3.4, 1000), "b": tool.Figures(0.1, 0.25, 0.5, 61, 20)}
    rows["drawn"] = tool.Figures(float("nan"), 1, 0.7, 0, 0)
    assert tool.table(rows).splitlines()[2:] == [
        "| b | 0.1000 | 0.25 | 0.50 | 20 | 61 |",
        "| a | 0.2000 | 0.50 | 1.00 | 1,000 | 3 |",
        "| drawn |  | 1.00 | 0.70 |  |  |",
    ]


def test_the_eye_finds_a_style_more_like_itself_than_another():
    eye = VisionMeasures()
    neon, blueprint = (
        [Image.open(path).convert("RGB") for path in sorted(tiny_pictures(name).glob("*.png"))]
        for name in ("neon", "blueprint")
    )
    assert eye.similarity(neon[:8], neon[8:]) > eye.similarity(blueprint[:8], neon[8:])
    assert len(eye.subjects(neon[:2])) == 2
