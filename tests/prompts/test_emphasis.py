"""The webui's answers, recorded by running it (tests/data/a1111), are what the grammar is held to."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.errors import BadPrompt, VelaturaWarning
from velatura.prompts.emphasis import BREAK, Fragment, parse_emphasis

GOLDEN = Path(__file__).parents[1] / "data" / "a1111"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize(("text", "runs"), [case for case in golden("attention") if isinstance(case[1], list)])
def test_emphasis_is_read_as_the_webui_reads_it(text, runs):
    assert parse_emphasis(text) == [Fragment(words, emphasis) for words, emphasis in runs]


@pytest.mark.parametrize("text", [text for text, runs in golden("attention") if not isinstance(runs, list)])
def test_where_the_webui_fails_a_malformed_number_is_text(text):
    assert parse_emphasis(text) == [Fragment(text.strip("()"), 1.1)]


def test_emphasis_can_be_ignored_or_not_read_at_all():
    text = "a (red:1.3) [house] BREAK boat"
    assert parse_emphasis(text, "Ignore") == [
        Fragment("a ", 1),
        Fragment("red", 1),
        Fragment(" ", 1),
        Fragment("house", 1),
        Fragment("", 1),
        BREAK,
        Fragment("boat", 1),
    ]
    assert parse_emphasis(text, "None") == [Fragment(text, 1)]


def test_too_large_emphasis_is_refused():
    with pytest.raises(BadPrompt, match="write a number such as"):
        parse_emphasis(f"a (red:{'9' * 400}) house")
    with pytest.raises(BadPrompt, match="write a number such as"):
        parse_emphasis("(" * 800 + "a house" + ")" * 800)  # 1.1 to the power of 800 is 1e33


def test_brackets_of_any_depth_are_read_if_the_emphasis_stays_a_number():
    assert parse_emphasis("[" * 5000 + "a house" + "]" * 5000)[0].emphasis == pytest.approx(1.1**-5000)
    [fragment] = parse_emphasis("([" * 2000 + "a house" + "])" * 2000)
    assert fragment.emphasis == pytest.approx(1)


def test_hundred_open_brackets_reach_to_the_end_and_more_have_no_effect():
    assert parse_emphasis("(" * 100 + "a house")[0].emphasis == pytest.approx(1.1**100)
    for brackets in ("(" * 101, "[" * 60 + "(" * 41):
        with pytest.warns(VelaturaWarning, match="has 101 brackets that are not closed: they have no effect"):
            assert parse_emphasis(f"{brackets}a house") == [Fragment("a house", 1)]


def test_brackets_that_would_take_long_are_refused():
    with pytest.raises(BadPrompt, match="nested too deeply around too many words"):
        parse_emphasis("[a" * 20_000 + "]" * 20_000)


@given(st.text("ab([])\\:.1 \nBREAK", max_size=40))
def test_any_text_is_read_into_finite_runs(text):
    runs = parse_emphasis(text)
    assert runs
    assert all(math.isfinite(run.emphasis) for run in runs)
    assert BREAK.text in text or BREAK not in runs
