"""Overlays that a picture of Civitai's generator lists, and that a library has."""

import json
import warnings

import pytest
from pydantic import ValidationError

import velatura
from velatura import Recipe
from velatura.errors import VelaturaWarning
from velatura.library.hashes import Hashes
from velatura.sampling.recipe.fields import OverlayResource
from velatura.sampling.resolve.resources import call_resources

LINE = "Steps: 1, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"


@pytest.fixture
def folder(lora, hyper, tmp_path):
    """A LoRA with Civitai's notes, another one without, and a hypernetwork."""
    velatura.save(lora(seed=1, text=False, name="neon"), tmp_path / "neon_v2.safetensors")
    (tmp_path / "neon_v2.civitai.info").write_text(json.dumps({"id": 210432, "model": {"name": "Neon, again"}}))
    velatura.save(lora(seed=2, text=False, name="ink"), tmp_path / "ink.safetensors")
    velatura.save(hyper(name="inca"), tmp_path / "inca.safetensors")
    return tmp_path


def listed(*resources):
    return Recipe.from_infotext(f"a house\n{LINE}, Civitai resources: {json.dumps(resources)}")


def test_a_file_is_found_by_its_number_and_called(tiny, folder):
    recipe = listed({"type": "lora", "weight": 0.85, "modelVersionId": 210432, "modelName": "Neon"})
    library = velatura.Library(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = velatura.generate(tiny, recipe, library=library)
    assert picture.recipe.prompt == "a house <lora:neon_v2:0.85>"
    assert picture.recipe.resources == ()
    assert [entry.name for entry in picture.recipe.overlay_hashes] == ["neon_v2"]
    expected = velatura.generate(
        tiny, recipe.replace(prompt="a house <lora:neon_v2:0.85>", resources=()), library=library
    )
    assert picture.image.tobytes() == expected.image.tobytes()
    assert velatura.generate(tiny, picture.recipe, library=library).recipe == picture.recipe


def test_a_file_is_found_by_its_hash(folder):
    digest = Hashes.from_file(folder / "ink.safetensors").sha256[:10]
    recipe = listed({"type": "locon", "name": "anything", "weight": 0.5, "hash": digest.upper()})
    assert call_resources(recipe, velatura.Library(folder)).prompt == "a house <lora:ink:0.5>"


def test_a_file_that_only_has_the_name_is_said(folder):
    recipe = listed({"type": "hypernet", "modelName": "Inca", "modelVersionId": 7, "weight": -1})
    with pytest.warns(VelaturaWarning, match=r"Inca \(model version 7, weight -1\) is taken for .*inca\.safetensors"):
        assert call_resources(recipe, velatura.Library(folder)).prompt == "a house <hypernet:inca:-1>"


@pytest.mark.parametrize("has_library", [False, True])
def test_what_is_not_found_is_named_and_stays_in_the_recipe(folder, has_library):
    """The first one may be a file, which is used; the other is named with the number to download it by."""
    neon = {"type": "lora", "modelVersionId": 210432, "modelName": "Neon"}
    recipe = listed(neon, {"type": "lora", "weight": 2, "modelVersionId": 9, "modelName": "Gone"})
    with pytest.warns(VelaturaWarning, match=r"are not used: .*Gone \(model version 9, weight 2\)"):
        called = call_resources(recipe, velatura.Library(folder) if has_library else None)
    assert [resource.name for resource in called.resources] == (["Gone"] if has_library else ["Neon", "Gone"])
    assert called.prompt == ("a house <lora:neon_v2:1>" if has_library else "a house")


def test_a_file_that_a_tag_calls_is_not_called_twice(folder):
    recipe = Recipe(
        prompt="a <lora:neon_v2:0.3>",
        hires_prompt="a boat",
        resources=(OverlayResource(kind="lora", version="210432"), OverlayResource(kind="lora", name="ink")),
    )
    with pytest.warns(VelaturaWarning, match="which has its name"):
        called = call_resources(recipe, velatura.Library(folder))
    assert (called.prompt, called.hires_prompt) == ("a <lora:neon_v2:0.3> <lora:ink:1>", "a boat <lora:ink:1>")
    assert called.resources == ()


@pytest.mark.parametrize("version", ["x210432", "210432\n", "civitai:1", "-1", "1234567890123"])
def test_a_version_is_a_number_from_its_first_to_its_last_letter(version):
    with pytest.raises(ValidationError, match="version"):
        OverlayResource(kind="lora", version=version)


def test_a_resource_is_of_a_kind_that_a_tag_has():
    with pytest.raises(ValidationError, match="kind"):
        OverlayResource(kind="checkpoint", name="ink")
