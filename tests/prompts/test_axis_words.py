"""The webui's own edits (tests/data/a1111/axis_prompts.json)."""

import json
from pathlib import Path

import pytest

from velatura.errors import BadRecipe
from velatura.prompts.axis_values import reorder_words, replace_words

CASES = json.loads((Path(__file__).parents[1] / "data" / "a1111" / "axis_prompts.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["kind"] == "Prompt S/R"], ids=lambda case: case["prompt"]
)
def test_words_are_replaced_as_in_the_webui(case):
    arguments = case["prompt"], case["negative"], case["values"][0], case["value"]
    if isinstance(case["result"], dict):
        with pytest.raises(BadRecipe, match="neither prompt contains"):
            replace_words(*arguments)
        return
    assert list(replace_words(*arguments)) == case["result"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["kind"] == "Prompt order"], ids=lambda case: case["prompt"]
)
def test_words_are_reordered_as_in_the_webui(case):
    assert reorder_words(case["prompt"], case["order"]) == case["result"]


def test_an_empty_text_cannot_be_replaced():
    with pytest.raises(BadRecipe, match=r"first value .* is empty"):
        replace_words("a", "", "", "b")


@pytest.mark.parametrize("words", [("red", "green"), ("red", "red"), ("", "red")])
def test_words_that_are_missing_cannot_be_reordered(words):
    with pytest.raises(BadRecipe, match="name words of the prompt"):
        reorder_words("a red boat", words)
