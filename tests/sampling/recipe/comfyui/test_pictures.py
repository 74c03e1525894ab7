"""Pictures and files by ComfyUI, with the metadata where it writes it."""

import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.sampling.recipe.comfyui.graphs import text_to_image
from velatura.errors import BadRecipe
from velatura.sampling.recipe.recipe import Recipe

MAKE, MODEL = 0x010F, 0x0110


def test_a_png_has_the_graph_in_a_chunk(tmp_path):
    chunks = PngInfo()
    chunks.add_text("prompt", json.dumps(text_to_image()))
    Image.new("RGB", (512, 768)).save(tmp_path / "a.png", pnginfo=chunks)
    recipe = Recipe.from_image(tmp_path / "a.png")
    assert (recipe.prompt, recipe.negative, recipe.seed) == ("a red house", "blurry", 156680208700286)


@pytest.mark.parametrize("suffix", [".webp", ".jpg"])
def test_other_pictures_have_the_graph_in_exif(tmp_path, suffix):
    exif = Image.Exif()
    exif[MODEL] = "prompt:" + json.dumps(text_to_image())
    exif[MAKE] = "workflow:" + json.dumps({"nodes": [], "links": []})
    Image.new("RGB", (512, 768)).save(tmp_path / f"a{suffix}", exif=exif)
    assert Recipe.from_image(tmp_path / f"a{suffix}").prompt == "a red house"


def test_a_picture_whose_graph_has_no_sampler_is_refused_by_name(tmp_path):
    chunks = PngInfo()
    chunks.add_text("prompt", json.dumps({"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}}}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(BadRecipe, match=r"ComfyUI graph cannot be read: none of its nodes samples .*\(LoadImage\)"):
        Recipe.from_image(tmp_path / "a.png")
