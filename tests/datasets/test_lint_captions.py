"""Flaws of the captions of a folder, as a person who reads them all would find them."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from velatura.cli.app import main
from velatura.datasets.captioners.lint_captions import find_contradictions, lint_captions
from velatura.datasets.check import check_folder


def flaws(*captions, names=()):
    return list(lint_captions({Path(f"{number}.png"): caption for number, caption in enumerate(captions)}, names))


def kinds(*captions, names=()):
    return [(flaw.kind, flaw.file and flaw.file.name) for flaw in flaws(*captions, names=names)]


def test_captions_that_differ_have_no_flaw():
    assert kinds("a red boat", "two cats in snow", "a house, night", "one star", "a green fish") == []


def test_a_word_in_four_of_five_captions_binds_instead_of_the_name():
    five = ("a painting of a boat", "a Painting of cats", "house, painting", "painting, star", "a green fish")
    [flaw] = flaws(*five)
    assert (flaw.kind, flaw.file) == ("frequent", None)
    assert "'painting' (4 of 5)" in flaw.text
    assert kinds(*five, names=["my painting"]) == []


def test_a_word_in_three_of_five_captions_does_not():
    assert kinds("a painting of a boat", "a painting of cats", "house, painting", "star", "a fish") == []


def test_few_captions_may_share_a_word():
    assert kinds("a red boat", "a blue boat", "a boat at sea") == []


def test_a_caption_that_another_picture_has_too_is_named_at_the_later_one():
    assert kinds("a red boat", "two cats", "A red  boat") == [("doubled", "2.png")]


def test_captions_that_are_all_the_same_are_one_flaw_of_the_folder():
    assert kinds("a boat", "a boat", "a boat") == [("doubled", None)]


def test_a_tag_that_stands_twice_and_a_caption_without_words_are_named():
    assert kinds("cat, snow, Cat", "...", "a star") == [("doubled tag", "0.png"), ("empty", "1.png")]


@pytest.mark.parametrize(
    "caption",
    [
        "a house by day, at night",
        "indoors, outdoors, cat",
        "no humans, 1girl, tree",
        "solo, 2girls",
        "from above, from below",
    ],
)
def test_words_that_exclude_each_other_are_a_contradiction(caption):
    assert kinds(caption, "a star", "two cats") == [("contradiction", "0.png")]


@pytest.mark.parametrize(
    "caption", ["day and night over a city", "from day to night", "a daylily at night", "solo, 1girl"]
)
def test_words_that_may_stand_together_are_none(caption):
    assert kinds(caption, "a star", "two cats") == []


def test_pictures_that_look_alike_and_say_other_things_contradict_each_other():
    captions = {Path("a.png"): "a red boat", Path("b.png"): "a blue cat", Path("c.png"): "the red boat"}
    pairs = [(Path("a.png"), Path("b.png")), (Path("a.png"), Path("c.png"))]
    assert [flaw.file for flaw in find_contradictions(captions, pairs)] == [Path("b.png")]


@pytest.fixture
def folder(tmp_path):
    """Four pictures, of which two look the same; all captions have the word toy."""
    texts = ("a toy on a table", "toy, in snow", "a toy at night", "the toy under water")
    for number, text in enumerate(texts):
        image = Image.new("RGB", (64, 64), "white")
        shape = min(number, 2)
        ImageDraw.Draw(image).polygon([(5 + 9 * shape, 5), (60, 20 + 15 * shape), (10, 60 - 12 * shape)], fill="navy")
        image.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(text)
    return tmp_path


def test_the_check_of_a_folder_finds_them_and_knows_the_name(folder):
    def found(**options):
        return {(f.kind, f.file.name) for f in check_folder(folder, 64, **options).findings if f.kind != "blurred"}

    alike = {("duplicate", "3.png"), ("contradiction", "3.png")}
    assert found() == {*alike, ("frequent", folder.name)}
    assert found(name="my toy") == alike


def test_a_folder_that_is_named_in_its_captions_is_the_name(folder):
    named = folder.rename(folder.with_name("toy"))
    assert "frequent" not in {finding.kind for finding in check_folder(named, 64).findings}


def test_the_command_prints_them(folder, capsys):
    assert main(["dataset", "check", str(folder), "--size", "64"]) == 0
    assert "'toy' (4 of 4)" in capsys.readouterr().out
    assert main(["dataset", "check", str(folder), "--size", "64", "--name", "toy"]) == 0
    assert "'toy' (4 of 4)" not in capsys.readouterr().out
