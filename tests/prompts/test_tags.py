"""The webui's answers, recorded by running it (tests/data/a1111), are what the grammar is held to."""

import json
from pathlib import Path

import pytest

from velatura.errors import BadPrompt, VelaturaWarning
from velatura.overlays import KINDS
from velatura.prompts.strengths import StrengthPoint, StrengthSchedule
from velatura.prompts.tags import MALFORMED_TAG_PATTERN, TAG_KINDS, check_tags, split_tags, strip_comments

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


@pytest.mark.parametrize("tag", ["<hypernet: :1>", "<lora::1>"])
def test_a_tag_without_a_name_calls_nothing_with_a_warning(tag):
    with pytest.warns(VelaturaWarning, match="names nothing; .*; it calls nothing"):
        assert split_tags(f"a {tag}") == ("a ", [])


@pytest.mark.parametrize("text", ["a <lora:", "<lora:<lora:<hypernet: ", "<lora:" * 10_000])
def test_the_start_of_a_tag_alone_is_words(text):
    assert split_tags(text) == (text, [])


def tags_of(text):
    return [str(tag) for tag in check_tags(split_tags(text)[1])]


def test_tags_of_kinds_that_only_other_programs_have_call_nothing_with_a_warning():
    with pytest.warns(VelaturaWarning, match="'<quux:a:1>' calls nothing, because velatura only has tags of hypernet"):
        assert tags_of("a <quux:a:1> <hypernet:b:1>") == ["<hypernet:b:1>"]
    assert tags_of("a <hypernett:b:1>") == ["<hypernett:b:1>"]  # a mistake, of which looking it up says what was meant


def test_the_kinds_of_tags_are_those_of_overlays():
    assert set(TAG_KINDS) == {*KINDS, "lyco"}


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("<hypernet:../../x:1>", "has a path for a name"),
        ("<lora:/etc/passwd:1>", "has a path for a name"),
        ("<lora:..\\x:1>", "has a path for a name"),
        ("<lora:a\0b:1>", "has a control character in its name"),
        ("<hypernet:a:1:0.5>", "a tag has one strength"),
        ("<lora:a:1:1:4:5>", "a tag has 3 arguments without a name"),
    ],
)
def test_a_name_that_no_overlay_has_and_what_nothing_reads_are_warned_of(tag, words):
    with pytest.warns(VelaturaWarning, match=words) as warned:
        assert tags_of(tag) == [tag]
    assert len(warned) == 1
    assert str(warned[0].message).isprintable()


def test_a_name_with_folders_of_a_library_is_a_name():
    assert tags_of("<lora:style/ink:1> <lora:style\\ink:1> <lora:a..b:1>")


@pytest.mark.parametrize("kind", TAG_KINDS)
@pytest.mark.parametrize("strength", ["nan", "-inf", "strong", "1:blocks=out+x"])
def test_a_strength_that_is_none_is_refused_in_tags_of_every_kind(kind, strength):
    with pytest.raises(BadPrompt, match=r"at the \^ in"):
        tags_of(f"a <{kind}:x:{strength}>")


def test_a_hundred_tags_are_read_and_more_are_refused():
    assert len(tags_of("<lora:x:1>" * 100)) == 100
    with pytest.raises(BadPrompt, match="the prompt has 101 tags: write 100 at most"):
        tags_of("<lora:x:1>" * 101)


def test_comparisons_and_hearts_are_not_tags():
    assert split_tags("i <3 u, a < b and c > d") == ("i <3 u, a < b and c > d", [])


@pytest.mark.parametrize("text", ["a < hypernet:x:1> house", "a <hypernet: > house"])
def test_with_lenient_a_malformed_tag_gives_a_warning_and_calls_nothing(text):
    with pytest.warns(VelaturaWarning, match="calls nothing"):
        _, tags = split_tags(text, lenient=True)
    assert tags == []
