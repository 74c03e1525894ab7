"""Recipes from texts: generation data that was copied from a web page, and files that lie beside pictures."""

import json

import pytest
from PIL import Image

from velatura.errors import BadFile, BadRecipe, VelaturaWarning
from velatura.sampling.recipe.metadata import save_with_infotext
from velatura.sampling.recipe.recipe import Recipe

# "Copy generation data" of Civitai
COPIED = """a house (red:1.2) <lora:ink:0.8>
Negative prompt: blurry,
too dark
Steps: 25, CFG scale: 6.5, Sampler: DPM++ 2M Karras, Seed: 7, Size: 512x768, Clip skip: 2, Created Date: 2024-12-22"""
HOUSE = Recipe(
    prompt="a house (red:1.2) <lora:ink:0.8>",
    negative="blurry,\ntoo dark",
    steps=25,
    guidance=6.5,
    sampler="DPM++ 2M Karras",
    seed=7,
    width=512,
    height=768,
    clip_skip=2,
    noise="GPU",
)
SWARM = {"prompt": "a house", "seed": 7, "steps": 25, "cfgscale": 6.5, "sampler": "euler", "width": 64, "height": 64}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_generation_data_is_read_from_a_text_file(tmp_path, encoding):
    path = tmp_path / "house.txt"
    path.write_bytes(f"\n{COPIED}\r\n\n".encode(encoding))
    assert Recipe.from_file(path) == Recipe.from_text(COPIED) == HOUSE


def test_json_of_other_programs_is_read_from_a_text(tmp_path):
    path = tmp_path / "house.json"
    path.write_text(json.dumps({"sui_image_params": SWARM}))
    recipe = Recipe.from_file(path)
    assert (
        recipe
        == Recipe.from_text(path.read_text())
        == Recipe(prompt="a house", steps=25, guidance=6.5, sampler="Euler", seed=7, width=64, height=64)
    )


def test_a_picture_is_read_as_a_picture_whatever_its_name_ends_in(tmp_path):
    save_with_infotext(Image.new("RGB", (8, 8)), tmp_path / "house.png", COPIED)
    (tmp_path / "house.png").rename(tmp_path / "house.txt")
    assert Recipe.from_file(tmp_path / "house.txt") == HOUSE


@pytest.mark.parametrize("text", ["a house", ""])
def test_a_text_without_settings_is_a_prompt(text):
    assert Recipe.from_text(text) == Recipe(prompt=text)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_a_text_that_is_not_utf8_is_read_with_a_warning(tmp_path, encoding):
    path = tmp_path / "house.txt"
    path.write_bytes("a caf\u00e9\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x96".encode(encoding))
    with pytest.warns(VelaturaWarning, match=r"house\.txt is not UTF-8 text, and is read as (Windows-1252|UTF-16):"):
        assert Recipe.from_file(path).prompt == "a caf\u00e9"


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"\x00\x01\x02", BadFile, "not a picture and not a text"),
        (b"\xe4\x01\xf6", BadFile, "not a picture and not a text"),
        (b"a" * (2**22 + 1), BadFile, "longer than 4 MiB"),
        (b'{"colour": 1}', BadRecipe, "house.txt: its metadata is JSON of an unknown program"),
        (b'{"sui_image_params": {"prompt": "a h', BadRecipe, "is JSON that is cut short"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, data, error, words):
    (tmp_path / "house.txt").write_bytes(data)
    with pytest.raises(error, match=words):
        Recipe.from_file(tmp_path / "house.txt")


@pytest.mark.parametrize(
    "prompt", ["BMW on a road", "BM", "RIFFs of a guitar by the WEBPage", "GIF8 bits", "II*", "MM, ftypist", "jP  a"]
)
def test_a_text_that_begins_like_a_picture_is_a_text(tmp_path, prompt):
    path = tmp_path / "house.txt"
    path.write_text(f"{prompt}\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x96", encoding="utf-8")
    assert Recipe.from_file(path).prompt == prompt


@pytest.mark.parametrize(
    "ending", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff", ".avif", ".jp2", ".ico", ".tga", ".ppm", ".pcx"]
)
def test_a_picture_of_any_format_is_no_text(tmp_path, ending):
    Image.new("RGB", (64, 64), "red").save(tmp_path / f"a{ending}")
    with pytest.raises(BadRecipe, match="contains no recipe"):
        Recipe.from_file(tmp_path / f"a{ending}")


@pytest.mark.parametrize("ending", [".avif", ".tiff"])
def test_a_recipe_in_exif_of_other_formats_is_read(tmp_path, ending):
    exif = Image.Exif()
    exif[0x010E] = "a house\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x96"
    Image.new("RGB", (64, 64), "red").save(tmp_path / f"a{ending}", exif=exif)
    assert Recipe.from_file(tmp_path / f"a{ending}").steps == 3


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadFile, match="does not exist"):
        Recipe.from_file(tmp_path / "house.txt")
