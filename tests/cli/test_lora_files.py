"""LoRAs on the command line: shown, converted, called by a prompt."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import velatura
from velatura.cli.app import USER_ERROR_STATUS, main
from velatura.sampling.recipe.recipe import Recipe

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(autouse=True)
def ink(tmp_path, monkeypatch):
    """A LoRA of kohya's scripts in the working folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(DATA / "nature" / "kohya_lora_d4a1.safetensors", "ink.safetensors")


@pytest.mark.filterwarnings("ignore:odd.safetensors has 1 of 182 tensors that fit no layer")
def test_show_tells_what_a_lora_changes_and_what_in_its_file_does_nothing(capsys):
    tensors = load_file("ink.safetensors") | {
        "lora_te3_x.alpha": torch.ones(()),
        "bundle_emb.neon.clip_l": torch.ones(1, 4),
    }
    save_file(tensors, "odd.safetensors")
    assert main(["show", "odd.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "structure      LoRA, rank 4, 60 layers\n" in shown
    assert (
        "changes        12 in text encoder 1, 8 elsewhere in the UNet, 32 in attentions, 8 in feed-forwards\n" in shown
    )
    assert "of no layer    1 tensor (lora_te3_x.alpha)\n" in shown
    assert "embeddings     neon\n" in shown
    assert main(["show", "odd.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nature"]["details"]["embeddings"] == "neon"


@pytest.mark.parametrize(
    ("target", "options", "key"),
    [
        ("out.safetensors", ["--dialect", "diffusers"], "unet.mid_block.attentions.0.proj_in.lora_A.weight"),
        ("out.safetensors", ["--dialect", "kohya"], "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"),
        ("out.safetensors", [], "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"),
        ("out", ["--dialect", "peft"], "base_model.model.mid_block.attentions.0.proj_in.lora_A.weight"),
    ],
)
def test_convert_writes_a_lora_for_another_program(target, options, key):
    assert main(["convert", "ink.safetensors", target, *options, "--dtype", "float16"]) == 0
    file = Path(target, "unet", "adapter_model.safetensors") if target == "out" else Path(target)
    found = load_file(file)
    assert key in found
    assert {each.dtype for each in found.values()} == {torch.float16}
    assert main(["convert", target, "back.safetensors"]) == 0
    assert (
        velatura.open_overlay("back.safetensors").layers.keys()
        == velatura.open_overlay("ink.safetensors").layers.keys()
    )


def test_convert_names_the_dialects_of_a_lora(capsys):
    assert main(["convert", "ink.safetensors", "out.safetensors", "--dialect", "difusers"]) == USER_ERROR_STATUS
    assert "did you mean 'diffusers'" in capsys.readouterr().err
    assert not Path("out.safetensors").exists()


def test_a_prompt_on_the_command_line_calls_a_lora(lora, capsys):
    velatura.save(lora(name="deep ink"), "models/Lora/deep.safetensors")
    words = [
        "a red house <lora:deep ink:0.5:0.8>",
        "--library",
        "models",
        "--steps",
        "1",
        "--seed",
        "7",
        "--out",
        "x.png",
    ]
    assert main(["generate", *words]) == 0
    capsys.readouterr()
    assert [(each.kind, each.name) for each in Recipe.from_image("x.png").overlay_hashes] == [("lora", "deep ink")]


def test_a_grid_goes_through_the_strengths_of_a_lora(lora, capsys):
    velatura.save(lora(), "models/Lora/deep.safetensors")
    words = ["a red house <lora:deep:{s}>", "--x", "s=0,0.5:1", "--library", "models", "--steps", "1", "--seed", "7"]
    assert main(["grid", *words, "--out", "grid.png"]) == 0
    capsys.readouterr()
    assert Path("grid.png").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--text-rate", "5e-5"], "--text-rate has no meaning without --text"),
        (["--vectors", "3"], "--vectors has no meaning without --word"),
        (["--conv-rank", "4", "--targets", "attention"], "give targets conv"),
        (["--factor", "4"], "factor belongs to lokr"),
    ],
)
def test_options_that_would_mean_nothing_are_refused(tmp_path, capsys, options, said):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40), "red").save(tmp_path / "photos" / "a red wall.png")
    assert main(["train", "lora", "photos", *options, "--dry-run"]) == USER_ERROR_STATUS
    assert said in " ".join(capsys.readouterr().err.split())
