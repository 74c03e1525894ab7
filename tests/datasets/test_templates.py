"""From captions to texts that are learned."""

import json
from pathlib import Path
from random import Random

import pytest

from velatura.datasets.templates import TEMPLATES, CaptionTemplate, split_tags, template_lines
from velatura.errors import BadDataset, UnknownName

GOLDEN = Path(__file__).parents[1] / "data" / "a1111" / "train" / "dataset.json"  # made by the webui v1.8.0


@pytest.mark.parametrize("case", json.loads(GOLDEN.read_text())["prompt_text"], ids=lambda case: case["text"])
def test_texts_are_drawn_as_in_the_webui(case):
    wording = CaptionTemplate(case["lines"], "NAME", case["shuffle_tags"], case["tag_drop_out"])
    assert wording.draw(case["filewords"], Random(case["python_random_seed"])) == case["text"]


def test_the_first_tags_can_be_kept_in_their_place():
    wording = CaptionTemplate(shuffles_tags=True, tag_dropout=0.5, keep_tags=2)
    drawn = {wording.draw("a,b,c,d,e", Random(seed)) for seed in range(50)}
    assert all(text.startswith("a,b") for text in drawn)
    assert len(drawn) > 10


def test_all_tags_but_those_kept_can_be_dropped():
    assert CaptionTemplate(tag_dropout=1, keep_tags=1).draw("a,b,c", Random(0)) == "a"


# In prompts, round brackets hold emphasis and square ones editing; a backslash makes a bracket a letter
@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("1girl, (red hair, blue eyes:1.3), smile", ["1girl", " (red hair, blue eyes:1.3)", " smile"]),
        ("a,[b, c::5],((d, e), f)", ["a", "[b, c::5]", "((d, e), f)"]),
        (r"saber \(fate, x\), b", [r"saber \(fate", r" x\)", " b"]),
        ("a :(, b, c)d", ["a :(, b, c)d"]),
        ("a :(, b, c", ["a :(", " b", " c"]),
        ("a), b, (c, d]", ["a)", " b", " (c", " d]"]),
        ("", [""]),
    ],
)
def test_brackets_hold_tags_together(caption, tags):
    assert split_tags(caption) == tags


def test_neither_shuffle_nor_dropout_tears_brackets():
    wording = CaptionTemplate(shuffles_tags=True, tag_dropout=0.3)
    drawn = [wording.draw("a,b,(red hair, blue eyes:1.3)", Random(seed)) for seed in range(100)]
    assert all(("red" in text) == ("(red hair, blue eyes:1.3)" in text) == ("eyes" in text) for text in drawn)
    assert any("red" in text for text in drawn)


def test_a_wording_knows_whether_its_texts_vary():
    assert CaptionTemplate().is_fixed
    assert CaptionTemplate(["[name]"], "x", shuffles_tags=True).is_fixed
    assert not CaptionTemplate(["a", "b"]).is_fixed
    assert not CaptionTemplate(tag_dropout=0.1).is_fixed


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lines": []}, "the template has no lines: write"),
        ({"tag_dropout": 1.5}, r"tag_dropout is 1\.5: choose a share from 0 to 1"),
        ({"keep_tags": -1}, "keep_tags is -1: choose 0 or more"),
    ],
)
def test_impossible_wordings_are_refused(options, reason):
    with pytest.raises(BadDataset, match=reason):
        CaptionTemplate(**options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_says_something_of_each_caption(name):
    lines = template_lines(name)
    assert lines
    assert all(CaptionTemplate([line], "inca").draw("a house", Random(0)) for line in lines)
    assert ("filewords" in name) <= all("[filewords]" in line for line in lines)


def test_a_template_is_a_text_file_with_a_line_each(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("  a view of [filewords]\n\nby [name] \n")
    assert template_lines(path) == ["a view of [filewords]", "", "by [name]"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadDataset, match="not UTF-8"):
        template_lines(path)
    with pytest.raises(UnknownName, match="no template is called 'styl': did you mean 'style'"):
        template_lines("styl")


def test_of_several_lines_all_the_first_or_a_drawn_one_are_the_caption():
    caption = "a red house\n\n a boat, at sea \na tree"
    assert CaptionTemplate().draw(caption, Random(0)) == caption
    assert CaptionTemplate(("by [name]: [filewords]",), "inca", caption_lines="first").draw(caption, Random(0)) == (
        "by inca: a red house"
    )
    drawn = CaptionTemplate(caption_lines="random")
    assert {drawn.draw(caption, Random(seed)) for seed in range(40)} == {"a red house", "a boat, at sea", "a tree"}
    assert (drawn.is_fixed, CaptionTemplate(caption_lines="first").is_fixed) == (False, True)


def test_a_caption_of_one_line_draws_as_before():
    options = {"lines": ("[filewords]", "a [filewords]"), "shuffles_tags": True, "tag_dropout": 0.3}
    plain, drawn = CaptionTemplate(**options), CaptionTemplate(**options, caption_lines="random")
    for seed in range(20):
        assert drawn.draw("a,b,c,d", Random(seed)) == plain.draw("a,b,c,d", Random(seed))
