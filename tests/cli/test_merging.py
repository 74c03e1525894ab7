import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

import velatura
from velatura.cli.bake import REPORT_KEY, bake, write_lora
from velatura.errors import AlreadyExists, BadFile, BadRecipe, UnknownName
from velatura.formats.checkpoints import single_file as checkpoint
from velatura.merging.bake.report import BakeReport
from velatura.tensors import open_tensors


@pytest.fixture
def inca(hyper, tmp_path, monkeypatch) -> velatura.Hypernetwork:
    """An overlay, its file in the working folder."""
    monkeypatch.chdir(tmp_path)
    overlay = hyper(widths=(96,), name="inca")
    velatura.save(overlay, "inca.pt")
    return overlay


def run(*words: str) -> str:
    """What `velatura bake` with these words prints."""
    app = typer.Typer()
    app.command()(bake)
    found = CliRunner().invoke(app, words)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.stdout


@torch.no_grad()
def prediction(base: velatura.Base) -> torch.Tensor:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    return base.predict(latents, torch.tensor(400), base.text.encode(["an owl on a branch"]))


def test_bake_writes_a_checkpoint_that_acts_like_the_overlays(tiny, inca):
    printed = run("tiny", "inca.pt:0.5", "inca.pt:-0.2", "--out", "deep/baked.safetensors", "--steps", "1")
    assert printed.startswith("inca:0.5, inca:-0.2 on tiny\n")
    assert printed.endswith(f"{Path('deep/baked.safetensors')}\n")
    with velatura.attach(tiny, inca, 0.5), velatura.attach(tiny, inca, -0.2):
        wanted = prediction(tiny)
    found = checkpoint.read(open_tensors("deep/baked.safetensors"))
    assert torch.allclose(prediction(found), wanted, atol=1e-4)


def test_base_and_overlays_are_found_by_name_and_baked_into_a_folder(tiny, inca, tmp_path):
    velatura.save(tiny, tmp_path / "models" / "checkpoints" / "small.safetensors")
    Path("inca.pt").rename(tmp_path / "models" / "inca.pt")
    run("small", "inca:0.5", "--library", "models", "--out", "baked", "--steps", "1")
    run("small", "models/inca.pt:0.5", "--library", "models", "--out", "baked.safetensors", "--steps", "1")
    folder, file = velatura.open_base("baked"), velatura.open_base("baked.safetensors")
    assert torch.equal(prediction(folder), prediction(file))
    assert not torch.equal(prediction(folder), prediction(tiny))
    with pytest.raises(AlreadyExists, match="choose a new folder"):
        run("tiny", "models/inca.pt", "--out", "baked")


@pytest.mark.usefixtures("inca")
def test_the_report_is_in_the_file_and_printed_as_json():
    printed = run("tiny", "inca.pt", "--out", "baked.safetensors", "--steps", "1", "--json")
    kept = open_tensors("baked.safetensors").metadata[REPORT_KEY]
    assert json.loads(printed) == json.loads(kept)
    assert BakeReport.model_validate_json(kept).strengths == (("inca", 1.0),)


def test_an_overlay_without_a_name_is_called_as_its_file(hyper, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    velatura.save(hyper(widths=(96,)), "models/inca-1.5.safetensors")
    for argument in ("models/inca-1.5.safetensors", "inca-1.5"):
        printed = run("tiny", argument, "--library", "models", "--out", "baked.safetensors", "--steps", "1", "--json")
        assert BakeReport.model_validate_json(printed).strengths == (("inca-1.5", 1.0),)
        Path("baked.safetensors").unlink()


@pytest.mark.usefixtures("inca")
def test_mistakes_are_found_before_anything_is_painted():
    Path("baked.safetensors").touch()
    Path("few.txt").write_text("a red fox\n\na robot\n")
    Path("odd.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(AlreadyExists):
        run("tiny", "inca.pt", "--out", "baked.safetensors")
    with pytest.raises(UnknownName):
        run("tiny", "inca.pt", "--out", "baked.ckpt")
    with pytest.raises(BadFile, match="one prompt on each line"):
        run("tiny", "inca.pt", "--out", "new.safetensors", "--prompts", "odd.txt")
    with pytest.raises(BadRecipe, match="fewer than 4"):
        run("tiny", "inca.pt", "--out", "new.safetensors", "--prompts", "few.txt")
    assert not Path("new.safetensors").exists()


def test_a_lora_under_kohyas_names_acts_like_the_hypernetwork(tiny, inca, capsys):
    Path("mine.txt").write_text("a red fox\na robot\na lighthouse\nan owl\n")
    write_lora(inca, Path("inca-lora.safetensors"), rank=96, prompts=Path("mine.txt"), steps=1)
    assert "as a LoRA of rank 96" in capsys.readouterr().out
    held = load_file("inca-lora.safetensors")
    base = velatura.tiny()
    for name, module in base.unet.named_modules():
        key = "lora_unet_" + name.replace(".", "_")  # kohya's rule
        if f"{key}.alpha" in held:
            up, down = (held.pop(f"{key}.lora_{half}.weight").float() for half in ("up", "down"))
            with torch.no_grad():
                module.weight += held.pop(f"{key}.alpha").item() / len(down) * up @ down
    assert not held
    with velatura.attach(tiny, inca):
        wanted = prediction(tiny)
    assert (prediction(base) - wanted).norm() < 0.1 * (prediction(tiny) - wanted).norm()
    found = open_tensors("inca-lora.safetensors").metadata
    assert found["ss_output_name"] == "inca-lora"
    assert found["ss_training_comment"] == "made of the hypernet inca on tiny"
    assert BakeReport.model_validate_json(found[REPORT_KEY]).rank == 96
