"""The webui's answers, recorded by running it (tests/data/a1111), are what the grammar is held to."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.errors import BadPrompt
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
    with pytest.raises(BadPrompt, match=r"100 brackets are open here.*\("):
        parse_emphasis("(" * 101)


@given(st.text("ab([])\\:.1 \nBREAK", max_size=40))
def test_any_text_is_read_into_finite_runs(text):
    runs = parse_emphasis(text)
    assert runs
    assert all(math.isfinite(run.emphasis) for run in runs)
    assert BREAK.text in text or BREAK not in runs
