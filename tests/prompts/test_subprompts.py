"""The webui's own answers (tests/data/a1111/and.json) are what AND is held to."""

import json
from pathlib import Path

import pytest

from velatura.errors import BadPrompt
from velatura.prompts.prompt import split_at_and

CASES = json.loads((Path(__file__).parents[1] / "data" / "a1111" / "and.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["prompts"][0])
def test_and_is_split_as_in_the_webui(case):
    for prompt, recorded in zip(case["prompts"], case["indexes"], strict=True):
        expected = [(case["flat"][position], weight) for position, weight in recorded]
        assert [(part.words, part.weight) for part in split_at_and(prompt)] == expected


def test_parts_have_their_positions():
    text = "a cat AND  a dog:0.5AND"
    assert [(text[part.start :][:3], part.weight) for part in split_at_and("a cat AND  a dog:0.5 AND")] == [
        ("a c", 1),
        ("  a", 0.5),
        ("", 1),
    ]


def test_a_too_large_weight_is_refused_with_its_position():
    with pytest.raises(BadPrompt, match=r"write a number such as 0.5; at the \^ in \"a AND b:\^99999999 AND c\""):
        split_at_and("a AND b:99999999 AND c")
