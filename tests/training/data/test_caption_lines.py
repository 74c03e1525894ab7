"""Captions with several lines in a training: all, the first, or a line that each step draws."""

import pytest
import torch
from PIL import Image

import velatura
from velatura.datasets.folder import read_dataset
from velatura.errors import BadPlan, VelaturaWarning
from velatura.training.data.cache import encode_dataset
from velatura.training.plan import Plan

PLAN = Plan(steps=4, pixels=64, cache=False)
LINES = ("a red house", "a boat at night")


@pytest.fixture
def dataset(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("\n".join(LINES) + "\n")
    return read_dataset(tmp_path)


def encode(tiny, dataset, plan):
    return encode_dataset(tiny, velatura.Hypernetwork.for_base(tiny, name="inca"), dataset, plan).captions


def contexts(captions, seed=1):
    """Return the contexts that the first twelve steps of a training read."""
    picture, kept = torch.tensor([0]), torch.tensor([False])
    return [captions.encode_batch(picture, kept, seed, step).context for step in range(12)]


def test_several_lines_are_one_text_and_said_once(tiny, dataset):
    with pytest.warns(
        VelaturaWarning, match="the caption of a.png has several lines, which are learned as one"
    ) as said:
        encode(tiny, dataset, PLAN)
    assert len(said) == 1
    encode(tiny, dataset, PLAN.replace(caption_lines="all"))  # a plan that says so is not warned


def test_the_first_line_is_the_caption_if_the_plan_says_so(tiny, dataset):
    expected = tiny.text.encode([LINES[0]]).detach()
    for context in contexts(encode(tiny, dataset, PLAN.replace(caption_lines="first"))):
        torch.testing.assert_close(context, expected)


def test_each_step_draws_a_line_by_the_seed_of_the_training(tiny, dataset):
    captions = encode(tiny, dataset, PLAN.replace(caption_lines="random"))
    expected = [tiny.text.encode([line]).detach() for line in LINES]
    drawn = [[torch.allclose(context, line, atol=1e-5) for line in expected] for context in contexts(captions)]
    assert all(sum(row) == 1 for row in drawn)
    assert {row.index(True) for row in drawn} == {0, 1}
    again = [[torch.allclose(context, line, atol=1e-5) for line in expected] for context in contexts(captions)]
    assert again == drawn


def test_an_unknown_choice_is_refused():
    with pytest.raises(BadPlan, match="caption_lines"):
        Plan(caption_lines="last")
