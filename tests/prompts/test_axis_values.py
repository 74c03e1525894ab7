"""The webui's own readings (tests/data/a1111/axis_values.json) are what the values of a grid are held to."""

import json
from pathlib import Path

import pytest

from velatura.errors import BadRecipe
from velatura.prompts.axis_values import numbers, orders, prompt_values, texts, whole_numbers

CASES = json.loads((Path(__file__).parents[1] / "data" / "a1111" / "axis_values.json").read_text("utf-8"))["cases"]
READERS = {"int": whole_numbers, "float": numbers, "str": texts, "perm": lambda text: list(map(list, orders(text)))}


@pytest.mark.parametrize(("kind", "text", "expected"), [case for case in CASES if isinstance(case[2], list)])
def test_values_are_read_as_in_the_webui(kind, text, expected):
    assert READERS[kind](text) == expected


@pytest.mark.parametrize(("kind", "text"), [case[:2] for case in CASES if not isinstance(case[2], list)])
def test_where_the_webui_fails_the_position_is_shown(kind, text):
    with pytest.raises(BadRecipe, match=r"write values as .*at the \^ in"):
        READERS[kind](text)


def test_the_position_of_a_wrong_entry_is_shown():
    with pytest.raises(BadRecipe, match=r"'x' is not a whole number; .* \"1-3, \^x, 5\""):
        whole_numbers("1-3, x, 5")


@pytest.mark.parametrize("text", ["1-1000000", "1-2 [999999]", "0-1 (+0.000001)", "1," * 10_001])
def test_too_many_values_are_refused(text):
    with pytest.raises(BadRecipe, match="more than 10,000 values"):
        numbers(text)


def test_too_many_orders_are_refused():
    with pytest.raises(BadRecipe, match="more than 10,000 values"):
        orders("a,b,c,d,e,f,g,h")


def test_a_field_without_end_is_refused():
    with pytest.raises(BadRecipe, match="are not a list"):
        texts('"' + "a" * 200_000)


def test_words_are_kept_as_written_but_for_clear_ranges():
    assert prompt_values("in, mid, in+mid") == ["in", "mid", "in+mid"]
    assert prompt_values("0-1 [3], 2-3, 07, 1-5 (+2), a (b) [5]") == [0.0, 0.5, 1.0, "2-3", "07", 1, 3, 5, "a (b) [5]"]
