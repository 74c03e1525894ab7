"""The webui's answers, recorded by running it (tests/data/a1111), are what the grammar is held to."""

import json
from pathlib import Path

import pytest

from velatura.errors import BadPrompt, VelaturaWarning
from velatura.prompts.strengths import StrengthPoint, StrengthSchedule
from velatura.prompts.tags import MALFORMED_TAG_PATTERN, split_tags, strip_comments

GOLDEN = Path(__file__).parents[1] / "data" / "a1111"


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))["cases"]


@pytest.mark.parametrize(("text", "left"), golden("comments"))
def test_comments_go_as_in_the_webui(text, left):
    assert strip_comments(text) == left


@pytest.mark.parametrize("case", golden("tags"), ids=lambda case: case["prompt"])
def test_tags_are_found_where_the_webui_finds_them_and_almost_tags_refused(case):
    if MALFORMED_TAG_PATTERN.search(case["clean"]):
        with pytest.raises(BadPrompt, match="a tag looks like <"):
            split_tags(case["prompt"])
        return
    words, tags = split_tags(case["prompt"])
    assert words == case["clean"]
    for kind, networks in case["networks"].items():
        assert [list(tag.arguments) for tag in tags if tag.kind == kind] == [network["items"] for network in networks]


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
    actual = [(tag.kind, list(tag.arguments)) for tag in split_tags(case["prompts"][0])[1]]  # the webui's only ones
    recorded = [(kind, network["items"]) for kind, networks in case["networks"].items() for network in networks]
    assert sorted(actual) == sorted(recorded)


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
def test_a_mistake_in_a_tag_is_shown_in_the_prompt_with_a_caret(tag, pointed_at):
    [parsed_tag] = split_tags(f"a lighthouse {tag} at dusk")[1]
    with pytest.raises(BadPrompt) as raised:
        _ = parsed_tag.strengths
    assert f'; at the ^ in "a lighthouse {pointed_at} at dusk"' in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["a <hypernet:x", "a < hypernet:x:1>", "a <hypernet>", "a hypernet:x:1>", "a <LORA :x>"]
)
def test_a_malformed_tag_is_refused(text):
    with pytest.raises(BadPrompt, match="is not a tag"):
        split_tags(text)


def test_a_tag_of_spaces_names_nothing():
    with pytest.raises(BadPrompt, match="names nothing"):
        split_tags("a <hypernet: :1>")


def test_comparisons_and_hearts_are_not_tags():
    assert split_tags("i <3 u, a < b and c > d") == ("i <3 u, a < b and c > d", [])


@pytest.mark.parametrize("text", ["a < hypernet:x:1> house", "a <hypernet: > house"])
def test_with_lenient_a_malformed_tag_gives_a_warning_and_calls_nothing(text):
    with pytest.warns(VelaturaWarning, match="calls nothing"):
        _, tags = split_tags(text, lenient=True)
    assert tags == []
