"""Recipes hidden in pixels, written bit by bit as stealth PNG info has them: column after column, highest bit first."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from velatura.errors import BadRecipe
from velatura.sampling.recipe.recipe import Recipe

INFOTEXT = "a house, café\nNegative prompt: blurry\nSteps: 25, Sampler: DPM++ 2M, CFG scale: 6.5, Seed: 7, Size: 96x64"
HOUSE = {"prompt": "a house", "uc": "blurry", "steps": 25, "sampler": "k_euler", "scale": 6.5, "seed": 7}
NOVELAI = {"Description": "a house", "Software": "NovelAI", "Source": "x", "Comment": json.dumps(HOUSE)}


def hide(path, signature, content, *, bit_count=None, mode="RGBA", size=(96, 64)):
    """Save a picture with a signature, a number of bits and a content in its lowest bits."""
    message = signature.encode() + (8 * len(content) if bit_count is None else bit_count).to_bytes(4, "big") + content
    bits = [int(bit) for byte in message for bit in f"{byte:08b}"]
    pixels = np.full((size[1], size[0], len(mode)), 254, np.uint8)
    channels = (3,) if "png" in signature else (0, 1, 2)
    places = [(row, column, channel) for column in range(size[0]) for row in range(size[1]) for channel in channels]
    for place, bit in zip(places, bits, strict=False):
        pixels[place] += bit
    Image.fromarray(pixels, mode).save(path, **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}))
    return path


@pytest.mark.parametrize("ending", ["png", "webp"])
@pytest.mark.parametrize(
    ("signature", "mode"),
    [
        ("stealth_pnginfo", "RGBA"),
        ("stealth_pngcomp", "RGBA"),
        ("stealth_rgbinfo", "RGB"),
        ("stealth_rgbcomp", "RGB"),
        ("stealth_rgbcomp", "RGBA"),
    ],
)
def test_infotext_in_pixels_is_read(tmp_path, ending, signature, mode):
    text = INFOTEXT.encode()
    content = gzip.compress(text, mtime=0) if signature.endswith("comp") else text
    recipe = Recipe.from_image(hide(tmp_path / f"a.{ending}", signature, content, mode=mode))
    assert (recipe.prompt, recipe.negative, recipe.seed, recipe.steps) == ("a house, café", "blurry", 7, 25)


def test_novelais_settings_in_pixels_are_read(tmp_path):
    recipe = Recipe.from_image(hide(tmp_path / "a.png", "stealth_pngcomp", gzip.compress(json.dumps(NOVELAI).encode())))
    assert (recipe.prompt, recipe.negative, recipe.sampler, recipe.seed) == ("a house", "blurry", "Euler", 7)


def test_a_visible_recipe_comes_first(tmp_path):
    path = hide(tmp_path / "a.png", "stealth_pnginfo", b"a cat\nSteps: 3, Seed: 1")
    image = Image.open(path)
    chunks = PngInfo()
    chunks.add_text("parameters", INFOTEXT.replace("é", "e"))
    image.save(tmp_path / "b.png", pnginfo=chunks)
    assert Recipe.from_image(tmp_path / "b.png").prompt == "a house, cafe"


@pytest.mark.parametrize(
    ("signature", "content", "bit_count"),
    [
        ("stealth_pnginfo", b"a house", 0),
        ("stealth_pnginfo", b"a house", 2**32 - 8),
        ("stealth_pnginfo", b"a house", 55),
        ("stealth_pnginfo", b"\xff\xfe\xfd", None),
        ("stealth_pngcomp", b"a house", None),
        ("stealth_pngcomp", gzip.compress(INFOTEXT.encode(), mtime=0)[:40], None),
        ("stealth_pngcomp", gzip.compress(bytes(2**23), mtime=0), None),
    ],
)
def test_a_damaged_or_endless_text_is_refused(tmp_path, signature, content, bit_count):
    path = hide(tmp_path / "a.png", signature, content, bit_count=bit_count, size=(512, 256))
    with pytest.raises(BadRecipe, match=r"a\.png: the recipe hidden in its pixels .*is damaged"):
        Recipe.from_image(path)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (96, 64)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_other_pictures_contain_no_recipe(tmp_path, mode, size):
    Image.new(mode, size).save(tmp_path / "a.png")
    with pytest.raises(BadRecipe, match="contains no recipe"):
        Recipe.from_image(tmp_path / "a.png")
