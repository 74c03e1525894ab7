"""How a command line names the base: by its path, or by its name in a library."""

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from PIL import Image

import velatura
from velatura.cli.app import USER_ERROR_STATUS, main
from velatura.cli.base import LoadOptions, open_base
from velatura.errors import VelaturaWarning
from velatura.formats.checkpoints.ldm_keys import unet_to_ldm, vae_to_ldm
from velatura.formats.checkpoints.ldm_text import clip_to_ldm
from velatura.sampling.recipe.recipe import Recipe
from velatura.tensors import write_safetensors


@pytest.fixture
def models(tiny, tmp_path, monkeypatch):
    """A library with the tiny base in it, under another name, in the working folder."""
    monkeypatch.chdir(tmp_path)
    velatura.save(tiny, tmp_path / "models" / "checkpoints" / "small.safetensors")
    return tmp_path / "models"


def test_a_base_is_named_by_its_name_in_a_library_or_by_its_path(models):
    library = velatura.Library(models)
    assert open_base("Small", library).name == "small"
    assert open_base("models/checkpoints/small.safetensors", library).name == "small"
    assert open_base("tiny", library).name == "tiny"


@pytest.mark.usefixtures("models")
def test_pictures_are_made_with_a_base_of_the_library(capsys):
    words = ["generate", "a house", "--base", "small", "--library", "models", "--steps", "1", "--seed", "1", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)[0]["recipe"]["base"] == "small"


@pytest.mark.usefixtures("models")
def test_overlays_are_trained_on_a_base_of_the_library(tmp_path, capsys):
    velatura.tiny_pictures("blueprint")
    words = ["train", "hypernet", str(velatura.tiny_pictures("blueprint")), "--base", "small", "--library", "models"]
    assert main([*words, "--dry-run"]) == 0
    assert "small" in capsys.readouterr().out


@pytest.mark.usefixtures("models")
def test_a_base_that_is_not_there_is_named_in_one_line(capsys):
    words = ["generate", "a house", "--library", "models", "--base"]
    assert main([*words, "smoll"]) == USER_ERROR_STATUS
    assert "no base is called 'smoll' in models: did you mean 'small'?" in capsys.readouterr().err
    assert main([*words, "elsewhere/sd15.safetensors"]) == USER_ERROR_STATUS
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.usefixtures("models")
def test_another_autoencoder_is_recorded_and_missed(tiny, tmp_path):
    vae = vae_to_ldm(tiny.vae.state_dict())
    write_safetensors(tmp_path / "other.vae.safetensors", vae)
    words = ["generate", "a house", "--base", "small", "--library", "models", "--steps", "1", "--seed", "1"]
    assert main([*words, "--vae", "other.vae.safetensors", "--out", "house.png"]) == 0
    recipe = Recipe.from_image("house.png")
    assert recipe.vae == "other.vae.safetensors"
    assert recipe.vae_hash == sha256((tmp_path / "other.vae.safetensors").read_bytes()).hexdigest()[:10]
    with pytest.warns(VelaturaWarning, match="was made with the autoencoder other.vae.safetensors"):
        velatura.generate(velatura.Library("models").base("small"), recipe)


@pytest.mark.filterwarnings("always::velatura.errors.VelaturaWarning")
@pytest.mark.usefixtures("models")
def test_a_recipe_opens_the_autoencoder_that_it_records(tiny, tmp_path, capsys):
    """The library finds it by its name, or by its hash once it is renamed; the picture is the same again."""
    vae = {key: tensor * 1.05 for key, tensor in vae_to_ldm(tiny.vae.state_dict()).items()}
    stored = tmp_path / "models" / "vae" / "warm.safetensors"
    stored.parent.mkdir()
    write_safetensors(stored, vae)
    words = ["generate", "a house", "--base", "small", "--library", "models", "--steps", "1", "--seed", "1"]
    assert main([*words, "--vae", "warm", "--out", "house.png"]) == 0
    again = ["generate", "--recipe", "house.png", "--library", "models", "--out"]
    assert main([*again, "again.png"]) == 0
    stored.rename(stored.with_name("renamed.safetensors"))
    assert main([*again, "renamed.png"]) == 0
    assert "autoencoder" not in capsys.readouterr().err
    pixels = [Image.open(name).tobytes() for name in ("house.png", "again.png", "renamed.png")]
    assert pixels[0] == pixels[1] == pixels[2]
    stored.with_name("renamed.safetensors").unlink()
    assert main([*again, "plain.png"]) == 0
    assert re.search(r"the autoencoder warm\.safetensors .*give it with --vae", capsys.readouterr().err)


@pytest.mark.usefixtures("models")
def test_a_recipe_opens_a_unet_and_text_encoders_that_it_records(tiny, tmp_path, capsys):
    """A UNet alone counts as the base; its text encoders and its autoencoder come from where they came from."""
    write_safetensors(tmp_path / "models" / "anime.safetensors", unet_to_ldm(tiny.unet.state_dict()))
    write_safetensors(tmp_path / "models" / "clip.safetensors", clip_to_ldm(tiny.text.encoders[0].model.state_dict()))
    words = ["generate", "a house", "--base", "small", "--library", "models", "--steps", "1", "--seed", "1"]
    assert main([*words, "--unet", "anime", "--text", "clip", "--out", "house.png"]) == 0
    assert Recipe.from_image("house.png").base == "anime"
    capsys.readouterr()
    assert main(["generate", "--recipe", "house.png", "--library", "models", "--out", "again.png"]) == 0
    assert "made with" not in capsys.readouterr().err
    assert Image.open("house.png").tobytes() == Image.open("again.png").tobytes()


@pytest.mark.filterwarnings("always::velatura.errors.VelaturaWarning")
@pytest.mark.usefixtures("models")
def test_a_base_that_is_named_is_opened_as_recorded_only_if_it_is_the_recipes(tiny, tmp_path, capsys):
    vae = {key: tensor * 1.05 for key, tensor in vae_to_ldm(tiny.vae.state_dict()).items()}
    (tmp_path / "models" / "vae").mkdir()
    write_safetensors(tmp_path / "models" / "vae" / "warm.safetensors", vae)
    small = tmp_path / "models" / "checkpoints" / "small.safetensors"
    shutil.copyfile(small, tmp_path / "models" / "other.safetensors")
    words = ["generate", "a house", "--base", "small", "--library", "models", "--steps", "1", "--seed", "1"]
    assert main([*words, "--vae", "warm", "--prediction", "v", "--out", "house.png"]) == 0
    again = ["generate", "--recipe", "house.png", "--library", "models", "--out", "again.png", "--overwrite", "--base"]
    for name in ("small", str(small)):
        capsys.readouterr()
        assert main([*again, name]) == 0
        assert "made with" not in capsys.readouterr().err
        assert Image.open("house.png").tobytes() == Image.open("again.png").tobytes()
    assert main([*again, "other"]) == 0
    message = capsys.readouterr().err
    assert re.search(r"the autoencoder warm\.safetensors .*give it with --vae", " ".join(message.split()))
    assert re.search(r"that predicts v.*--prediction v", " ".join(message.split()))


def test_the_tiny_base_takes_a_precision_and_no_autoencoder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_base("tiny", load_options=LoadOptions(dtype="bfloat16")).dtype == torch.bfloat16
    assert main(["generate", "a house", "--vae", "x.pt"]) == USER_ERROR_STATUS
    assert "leave out --vae" in capsys.readouterr().err


def test_a_prediction_on_the_command_line_is_stronger_than_the_files(models, capsys):
    path = str(models / "checkpoints" / "small.safetensors")  # its header says epsilon
    hashes = []
    for options in ([], ["--prediction", "epsilon"], ["--prediction", "v", "--zero-snr"]):
        words = ["generate", "a house", "--base", path, "--steps", "1", "--seed", "1", "--json", "--overwrite"]
        assert main([*words, *options, "--out", "house.png"]) == 0
        hashes.append(sha256(Image.open("house.png").tobytes()).hexdigest())
    capsys.readouterr()
    assert hashes[0] == hashes[1] != hashes[2]
    assert main(["generate", "a house", "--prediction", "v"]) == USER_ERROR_STATUS
    assert "leave out --prediction" in capsys.readouterr().err


@pytest.mark.filterwarnings("default::velatura.VelaturaWarning")
def test_a_replay_opens_the_base_as_the_recipe_records_it(models, capsys):
    words = ["generate", "a house", "--base", "small", "--library", str(models), "--steps", "1", "--seed", "1"]
    assert main([*words, "--prediction", "v", "--zero-snr", "--out", "forced.png"]) == 0
    assert main(["generate", "--recipe", "forced.png", "--library", str(models), "--out", "again.png"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert Image.open("again.png").tobytes() == Image.open("forced.png").tobytes()
    words = ["generate", "--recipe", "forced.png", "--library", str(models), "--no-zero-snr", "--out", "other.png"]
    assert main(words) == 0
    assert "open it with zero_snr=True (--zero-snr)" in capsys.readouterr().err
    assert Image.open("other.png").tobytes() != Image.open("forced.png").tobytes()


def test_load_options_reach_the_base(models):
    path = str(models / "checkpoints" / "small.safetensors")
    for library in (None, velatura.Library(models)):
        base = open_base(path if library is None else "small", library, LoadOptions(prediction="v", zero_snr=True))
        assert (base.family.prediction, base.schedule.zero_snr) == ("v_prediction", True)


@pytest.fixture
def in_parts(tiny, tmp_path, monkeypatch):
    """The tiny base whole, and its parts in files of their own, in the folders of ComfyUI."""
    monkeypatch.chdir(tmp_path)
    velatura.save(tiny, tmp_path / "models" / "checkpoints" / "small.safetensors")
    unet = {
        key.removeprefix("model.diffusion_model."): tensor
        for key, tensor in unet_to_ldm(tiny.unet.state_dict()).items()
    }
    write_safetensors(tmp_path / "models" / "unet" / "anime.safetensors", unet)
    text = clip_to_ldm(tiny.text.encoders[0].model.state_dict(), "")
    write_safetensors(tmp_path / "models" / "clip" / "clip_l.safetensors", text)
    write_safetensors(tmp_path / "models" / "vae" / "soft.safetensors", vae_to_ldm(tiny.vae.state_dict()))
    return tmp_path


BY_PATH = ["--unet", "models/unet/anime.safetensors", "--text", "models/clip/clip_l.safetensors"]
BY_NAME = ["--unet", "unet/anime", "--text", "clip_l.safetensors", "--vae", "soft"]


@pytest.mark.parametrize("parts", [BY_PATH, BY_NAME])
@pytest.mark.parametrize("base", ["small", "models/checkpoints/small.safetensors"])
@pytest.mark.usefixtures("in_parts")
def test_parts_of_a_base_are_given_by_paths_or_names(parts, base, capsys):
    words = ["generate", "a house", "--base", base, "--library", "models", "--steps", "1", "--seed", "1", *parts]
    assert main([*words, "--out", "a.png"]) == 0, capsys.readouterr().err
    recipe = Recipe.from_image("a.png")
    assert (recipe.base, recipe.text) == ("anime", "clip_l.safetensors")
    assert recipe.base_hash == sha256(Path("models/unet/anime.safetensors").read_bytes()).hexdigest()[:10]


@pytest.mark.usefixtures("in_parts")
def test_a_unet_alone_needs_the_other_parts_or_a_base(capsys):
    words = ["generate", "a house", "--library", "models", "--steps", "1", "--out", "a.png", "--overwrite"]
    assert main([*words, "--unet", "unet/anime"]) == USER_ERROR_STATUS
    assert "(--text)" in (printed := capsys.readouterr().err)
    assert "(--base)" in printed
    assert main([*words, "--unet", "unet/anime", "--text", "small", "--vae", "soft"]) == 0
    assert main([*words, "--text", "clip_l"]) == USER_ERROR_STATUS
    assert "the base whose parts they replace with --base" in capsys.readouterr().err


@pytest.mark.usefixtures("in_parts")
def test_bases_in_parts_are_baked_and_trained(lora, capsys):
    velatura.save(lora(), "ink.safetensors")
    assert main(["bake", "small", "ink.safetensors", "--library", "models", *BY_NAME, "--out", "b.safetensors"]) == 0
    words = ["train", "lora", str(velatura.tiny_pictures("neon")), "--base", "small", "--library", "models"]
    parts = ["--text-encoder" if word == "--text" else word for word in BY_NAME]  # --text trains them
    assert main([*words, *parts, "--steps", "2", "--out", "run"]) == 0, capsys.readouterr().err
    assert "anime" in capsys.readouterr().out
