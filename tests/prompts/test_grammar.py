"""The webui's answers, recorded by running it (tests/data/a1111), are what the grammar is held to."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.errors import BadPrompt, VelaturaWarning
from velatura.prompts.grammar import ALMOST_TAG, BREAK, Run, read_emphasis, take_tags, unread, without_comments

GOLDEN = Path(__file__).parents[1] / "data" / "a1111"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize(("text", "runs"), [case for case in golden("attention") if isinstance(case[1], list)])
def test_emphasis_is_read_as_the_webui_reads_it(text, runs):
    assert read_emphasis(text) == [Run(words, emphasis) for words, emphasis in runs]


@pytest.mark.parametrize("text", [text for text, runs in golden("attention") if not isinstance(runs, list)])
def test_where_the_webui_fails_a_malformed_number_is_text(text):
    assert read_emphasis(text) == [Run(text.strip("()"), 1.1)]


@pytest.mark.parametrize(("text", "left"), golden("comments"))
def test_comments_go_as_in_the_webui(text, left):
    assert without_comments(text) == left


@pytest.mark.parametrize("case", golden("tags"), ids=lambda case: case["prompt"])
def test_tags_are_found_where_the_webui_finds_them_and_almost_tags_refused(case):
    if ALMOST_TAG.search(case["clean"]):
        with pytest.raises(BadPrompt, match="one looks like <"):
            take_tags(case["prompt"])
        return
    words, tags = take_tags(case["prompt"])
    assert words == case["clean"]
    for kind, networks in case["networks"].items():
        assert [list(tag.arguments) for tag in tags if tag.kind == kind] == [each["items"] for each in networks]


@pytest.mark.parametrize("case", [case for case in golden("tags") if "ValueError" not in case["errors"]])
@pytest.mark.filterwarnings("ignore:.*what follows is ignored")
def test_strengths_are_what_the_webui_loads_with(case):
    [names, strengths] = case["hypernet_loads"][-1]
    if ALMOST_TAG.search(case["clean"]) or "nan" in strengths:
        return
    tags = [tag for tag in take_tags(case["prompt"])[1] if tag.kind == "hypernet"]
    assert [tag.name for tag in tags] == [name.strip() for name in names]
    assert [tag.strength for tag in tags] == strengths


@pytest.mark.parametrize("written", ["abc", "", "0,5", "nan", "inf", "a=b"])
def test_a_strength_that_is_no_number_is_shown_with_a_caret(written):
    [tag] = take_tags(f"a lighthouse <hypernet:inca:{written}>")[1]
    with pytest.raises(BadPrompt, match=r"<hypernet:inca:0.6>; at the \^ in") as raised:
        _ = tag.strength
    assert f"a lighthouse <hypernet:inca:^{written}>" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["a <hypernet:x", "a < hypernet:x:1>", "a <hypernet>", "a hypernet:x:1>", "a <LORA :x>"]
)
def test_what_was_meant_as_a_tag_but_is_none_is_refused(text):
    with pytest.raises(BadPrompt, match="is no tag"):
        take_tags(text)


def test_a_tag_of_spaces_names_nothing():
    with pytest.raises(BadPrompt, match="names nothing"):
        take_tags("a <hypernet: :1>")


def test_comparisons_and_hearts_are_no_tags():
    assert take_tags("i <3 u, a < b and c > d") == ("i <3 u, a < b and c > d", [])


def test_more_arguments_than_a_tag_has_are_warned_of():
    [tag] = take_tags("<hypernet:inca:0.5:x>")[1]
    with pytest.warns(VelaturaWarning, match="what follows is ignored"):
        assert tag.strength == 0.5


@pytest.mark.parametrize("text", ["a [cat:dog:0.5]", "[dog:3]", "[a|b]", "cat AND dog"])
def test_grammar_that_is_not_read_yet_is_noticed(text):
    assert unread(text)


@pytest.mark.parametrize("text", ["a [cat]", "score: [5]", r"\[a|b\]", "HAND AND_", "(a:1.5)"])
def test_plain_words_are_not_taken_for_grammar(text):
    assert not unread(text)


@given(st.text("ab([])\\:.1 \nBREAK", max_size=40))
def test_any_text_is_read_into_finite_runs(text):
    runs = read_emphasis(text)
    assert runs
    assert all(math.isfinite(run.emphasis) for run in runs)
    assert BREAK.text in text or BREAK not in runs
