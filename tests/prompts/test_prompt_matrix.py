"""The prompts of the webui's own example in its wiki, and what follows from it."""

import pytest

from velatura.errors import BadPrompt
from velatura.prompts.prompt_matrix import PromptMatrix


def test_two_options_make_four_prompts():
    matrix = PromptMatrix.parse("a busy city street in a modern city|illustration|cinematic lighting")
    assert matrix.prompts() == [
        ["a busy city street in a modern city", "a busy city street in a modern city, illustration"],
        [
            "a busy city street in a modern city, cinematic lighting",
            "a busy city street in a modern city, illustration, cinematic lighting",
        ],
    ]
    assert matrix.columns() == [(), ("illustration",)]
    assert matrix.rows() == [(), ("cinematic lighting",)]


def test_three_options_change_two_across_and_one_down():
    matrix = PromptMatrix.parse("a | b , | c |, d")
    assert matrix.columns() == [(), ("b",), ("c",), ("b", "c")]
    assert matrix.rows() == [(), ("d",)]
    assert matrix.prompts(" ")[1] == ["a d", "a b d", "a c d", "a b c d"]


def test_options_can_stand_first():
    assert PromptMatrix.parse("a|b|c").prompts(base_last=True) == [["a", "b, a"], ["c, a", "b, c, a"]]


def test_bars_of_editing_in_brackets_and_behind_backslashes_are_words():
    matrix = PromptMatrix.parse(r"a [red|blue] house, (x|y) \| :( |at night")
    assert matrix == PromptMatrix(r"a [red|blue] house, (x|y) \| :(", ("at night",))


def test_without_options_it_is_one_prompt():
    assert PromptMatrix.parse("a house").prompts() == [["a house"]]


def test_too_many_options_are_refused():
    with pytest.raises(BadPrompt, match=r"use up to 10 options; at the \^ in \"a\|b.*\^\|"):
        PromptMatrix.parse("a" + "|b" * 11)
