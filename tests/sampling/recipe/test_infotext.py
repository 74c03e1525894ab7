"""Held to what the webui wrote and read when it was run (tests/data/a1111)."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from velatura.errors import BadFile
from velatura.sampling.recipe.infotext import quote, read_infotext, unquote, write_infotext
from velatura.sampling.recipe.metadata import read_image_infotext, save_with_infotext

GOLDEN = Path(__file__).parents[2] / "data" / "a1111"

# What the webui adds on reading: what its own form would show where the text is silent, and marks for old versions
FORM_DEFAULTS = re.compile(
    r"Clip skip|Hires .*|Mask.*|Inpaint area|RNG|Schedule .*|VAE (En|De)coder|FP8 weight|Emphasis"
    r"|Old prompt editing timelines|Pad conds v0|Downcast alphas_cumprod"
)


def golden(name):
    return json.loads((GOLDEN / name).read_text("utf-8"))


def as_the_webui_lists(infotext):
    """Our reading in the webui's form: sizes are two entries there."""
    listed = {"Prompt": infotext.prompt, "Negative prompt": infotext.negative}
    for key, value in infotext.fields.items():
        size = re.fullmatch(r"(\d+)x(\d+)", value)
        listed |= {f"{key}-1": size[1], f"{key}-2": size[2]} if size else {key: value}
    return listed


@pytest.mark.parametrize("case", golden("infotext_parse.json")["cases"], ids=lambda case: case["text"][-40:])
def test_texts_are_read_as_the_webui_reads_them(case):
    ours, theirs = as_the_webui_lists(read_infotext(case["text"])), case["parsed"]
    if "First pass size" in case["text"]:  # the webui computes a hires pass from it
        ours = {key: value for key, value in ours.items() if not re.match(r"First pass size|Size", key)}
        theirs = {key: value for key, value in theirs.items() if not re.match(r"First pass size|Size", key)}
    ours = {key: value for key, value in ours.items() if key not in case.get("skip_fields", [])}
    assert {key: theirs[key] for key in ours if key in theirs} == ours
    left = [key for key in theirs if key not in ours]
    assert not [key for key in left if f"{key}:" in case["text"] or not FORM_DEFAULTS.fullmatch(key)]


@pytest.mark.parametrize("case", golden("infotext_build.json")["cases"], ids=lambda case: case["infotext"][-40:])
def test_what_the_webui_wrote_is_written_again_from_its_parts(case):
    text = case["infotext"]
    prompt, negative, fields = read_infotext(text)
    named = {key: value for key, value in fields.items() if f"{key}: " in text}
    written = write_infotext(prompt, negative, named).splitlines()[-1]
    assert written == text.splitlines()[-1].replace(", same", "")  # an entry without a value, which no field of ours is


@pytest.mark.parametrize(("value", "text"), golden("infotext_quote.json")["quote"])
def test_values_are_quoted_as_in_the_webui(value, text):
    assert quote(value) == str(text)


@pytest.mark.parametrize(("text", "value"), golden("infotext_quote.json")["unquote"])
def test_values_are_unquoted_as_in_the_webui(text, value):
    assert unquote(text) == value


CARRIED = golden("carriers/index.json")["cases"]


@pytest.mark.parametrize("case", CARRIED, ids=lambda case: case["file"])
def test_every_carrier_of_the_webui_is_read(case):
    assert read_image_infotext(GOLDEN / "carriers" / case["file"]) == case["info"]


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("text", ["a cat\nSteps: 1, Sampler: a, Seed: 2", "ünïcödé 日本 😀"])
def test_a_picture_carries_its_text(tmp_path, ending, text):
    path = tmp_path / f"picture{ending}"
    save_with_infotext(Image.new("RGB", (8, 8)), path, text)
    assert read_image_infotext(path) == text
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_name_without_a_known_ending_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(BadFile, match=r"end it in \.png"):
        save_with_infotext(Image.new("RGB", (8, 8)), tmp_path / "picture.xyz", "")
    assert not list(tmp_path.iterdir())


def test_what_is_no_picture_is_a_bad_file(tmp_path):
    with pytest.raises(BadFile, match="does not exist"):
        read_image_infotext(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(BadFile, match="is not a picture"):
        read_image_infotext(tmp_path / "text.png")
    damaged = (GOLDEN / "carriers" / "none.jpg").read_bytes()[:300]
    (tmp_path / "cut.jpg").write_bytes(damaged)
    with pytest.raises(BadFile, match=r"is not a picture|damaged"):
        read_image_infotext(tmp_path / "cut.jpg")


@pytest.mark.parametrize(
    ("ending", "size", "text", "words"),
    [
        (".webp", (20_000, 8), "a", "allows 16,383 at most: end it in .png"),
        (".jpg", (8, 70_000), "a", "allows 65,500 at most: end it in .png"),
        (".jpg", (8, 8), "a " * 20_000, "no room for a recipe of 40,000 characters"),
        (".jpeg", (8, 8), "\N{GRINNING FACE}" * 20_000, "no room for a recipe"),
    ],
)
def test_what_a_format_has_no_room_for_is_refused(tmp_path, ending, size, text, words):
    with pytest.raises(BadFile, match=words):
        save_with_infotext(Image.new("RGB", size), tmp_path / f"it{ending}", text)
    assert not list(tmp_path.iterdir())


def test_the_longest_recipe_of_a_jpeg_is_carried(tmp_path):
    save_with_infotext(Image.new("RGB", (8, 8)), tmp_path / "it.jpg", "é" * 32_500)
    assert read_image_infotext(tmp_path / "it.jpg") == "é" * 32_500


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_a_name_that_is_no_text_stops_no_picture(tmp_path, ending):
    """A base's file may be called by bytes that are no UTF-8."""
    save_with_infotext(Image.new("RGB", (8, 8)), tmp_path / f"it{ending}", "Model: \udcff")
    assert read_image_infotext(tmp_path / f"it{ending}") == "Model: ?"
