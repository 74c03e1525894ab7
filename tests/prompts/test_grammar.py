"""The webui's answers, recorded by running it (tests/data/a1111), are what the grammar is held to."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velatura.errors import BadPrompt, VelaturaWarning
from velatura.prompts.grammar import BREAK, MALFORMED_TAG_PATTERN, Fragment, parse_emphasis, split_tags, strip_comments
from velatura.prompts.strengths import StrengthPoint, StrengthSchedule

GOLDEN = Path(__file__).parents[1] / "data" / "a1111"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize(("text", "runs"), [case for case in golden("attention") if isinstance(case[1], list)])
def test_emphasis_is_read_as_the_webui_reads_it(text, runs):
    assert parse_emphasis(text) == [Fragment(words, emphasis) for words, emphasis in runs]


@pytest.mark.parametrize("text", [text for text, runs in golden("attention") if not isinstance(runs, list)])
def test_where_the_webui_fails_a_malformed_number_is_text(text):
    assert parse_emphasis(text) == [Fragment(text.strip("()"), 1.1)]


@pytest.mark.parametrize(("text", "left"), golden("comments"))
def test_comments_go_as_in_the_webui(text, left):
    assert strip_comments(text) == left


@pytest.mark.parametrize("case", golden("tags"), ids=lambda case: case["prompt"])
def test_tags_are_found_where_the_webui_finds_them_and_almost_tags_refused(case):
    if MALFORMED_TAG_PATTERN.search(case["clean"]):
        with pytest.raises(BadPrompt, match="one looks like <"):
            split_tags(case["prompt"])
        return
    words, tags = split_tags(case["prompt"])
    assert words == case["clean"]
    for kind, networks in case["networks"].items():
        assert [list(tag.arguments) for tag in tags if tag.kind == kind] == [each["items"] for each in networks]


@pytest.mark.parametrize("case", [case for case in golden("tags") if "ValueError" not in case["errors"]])
@pytest.mark.filterwarnings("ignore:a tag has one strength")
def test_strengths_are_what_the_webui_loads_with(case):
    [names, strengths] = case["hypernet_loads"][-1]
    if MALFORMED_TAG_PATTERN.search(case["clean"]) or "nan" in strengths:
        return
    tags = [tag for tag in split_tags(case["prompt"])[1] if tag.kind == "hypernet"]
    assert [tag.name for tag in tags] == [name.strip() for name in names]
    assert [tag.strengths for tag in tags] == [
        StrengthSchedule((StrengthPoint(0, strength),)) for strength in strengths
    ]


@pytest.mark.parametrize("case", golden("tag_batches"), ids=lambda case: case["prompts"][0])
def test_the_tags_of_a_batch_are_taken_out_of_each_prompt(case):
    texts = [text for text in case["prompts"] if not MALFORMED_TAG_PATTERN.search(text.replace("<hypernet:", "<"))]
    cleaned = [clean for text, clean in zip(case["prompts"], case["clean"], strict=True) if text in texts]
    assert [split_tags(text)[0] for text in texts] == cleaned
    found = [(tag.kind, list(tag.arguments)) for tag in split_tags(case["prompts"][0])[1]]  # the webui's only ones
    recorded = [(kind, each["items"]) for kind, networks in case["networks"].items() for each in networks]
    assert sorted(found) == sorted(recorded)


@pytest.mark.parametrize(
    ("tag", "pointed_at"),
    [
        ("<hypernet:inca:abc>", "<hypernet:inca:^abc>"),
        ("<hypernet:inca:>", "<hypernet:inca:^>"),
        ("<hypernet: inca : 0,5>", "<hypernet: inca : ^0,5>"),
        ("<hypernet:inca:0.5:start=soon>", "<hypernet:inca:0.5:start=^soon>"),
        ("<hypernet:inca:a=b>", "<hypernet:inca:^a=b>"),
    ],
)
def test_what_is_wrong_with_a_tag_is_shown_in_the_prompt_with_a_caret(tag, pointed_at):
    [read] = split_tags(f"a lighthouse {tag} at dusk")[1]
    with pytest.raises(BadPrompt) as raised:
        _ = read.strengths
    assert f'; at the ^ in "a lighthouse {pointed_at} at dusk"' in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["a <hypernet:x", "a < hypernet:x:1>", "a <hypernet>", "a hypernet:x:1>", "a <LORA :x>"]
)
def test_what_was_meant_as_a_tag_but_is_none_is_refused(text):
    with pytest.raises(BadPrompt, match="is no tag"):
        split_tags(text)


def test_a_tag_of_spaces_names_nothing():
    with pytest.raises(BadPrompt, match="names nothing"):
        split_tags("a <hypernet: :1>")


def test_comparisons_and_hearts_are_no_tags():
    assert split_tags("i <3 u, a < b and c > d") == ("i <3 u, a < b and c > d", [])


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


def test_emphasis_beyond_all_numbers_is_refused():
    with pytest.raises(BadPrompt, match="write one such as"):
        parse_emphasis(f"a (red:{'9' * 400}) house")
    with pytest.raises(BadPrompt, match=r"100 brackets are open here.*\("):
        parse_emphasis("(" * 101)


@pytest.mark.parametrize("text", ["a < hypernet:x:1> house", "a <hypernet: > house"])
def test_leniently_what_is_no_tag_is_warned_of_and_calls_nothing(text):
    with pytest.warns(VelaturaWarning, match="calls nothing"):
        _, tags = split_tags(text, lenient=True)
    assert tags == []


@given(st.text("ab([])\\:.1 \nBREAK", max_size=40))
def test_any_text_is_read_into_finite_runs(text):
    runs = parse_emphasis(text)
    assert runs
    assert all(math.isfinite(run.emphasis) for run in runs)
    assert BREAK.text in text or BREAK not in runs
