import json
import shutil
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

import velatura
from velatura.cli.app import USER_ERROR_STATUS, main
from velatura.cli.files.commands import convert
from velatura.errors import AlreadyExists
from velatura.formats.checkpoints.ldm_keys import unet_to_ldm
from velatura.formats.inspect.overlay import inspect_overlay
from velatura.tensors import open_tensors, write_safetensors

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def inca(tiny, tmp_path, monkeypatch):
    """An overlay file in the working folder, as A1111 writes it."""
    monkeypatch.chdir(tmp_path)
    overlay = velatura.Hypernetwork.for_base(tiny, layers=(1, 2, 1), activation="relu", seed=1)
    velatura.save(overlay, tmp_path / "inca.pt")
    return tmp_path / "inca.pt"


@pytest.mark.usefixtures("inca")
def test_show_tells_what_the_overlay_is(capsys):
    assert main(["show", "inca.pt"]) == 0
    shown = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.replace("in a prompt", "prompt").splitlines()
    )
    assert shown["kind"] == "hypernet"
    assert shown["structure"] == "64,96,128,192 · 1,2,1 relu"
    assert shown["prompt"] == "<hypernet:inca:1>"
    assert shown["hash"].startswith(sha256(Path("inca.pt").read_bytes()).hexdigest()[:10])


@pytest.mark.usefixtures("inca")
def test_show_tells_which_programs_open_it(capsys):
    assert main(["show", "inca.pt"]) == 0
    shown = capsys.readouterr().out
    assert "in A1111       yes, 1.4 and later\n" in shown
    assert "in ComfyUI     yes\n" in shown
    assert "in diffusers   no, " in shown


def test_show_as_json_has_the_card_and_all_else(inca, capsys):
    assert main(["show", "inca.pt", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    verdict = inspect_overlay(inca).model_dump(mode="json")
    assert {key: shown[key] for key in verdict} == verdict
    assert shown["hashes"]["AutoV2"] == verdict["hash"][:10]
    assert shown["card"] == velatura.open_overlay(inca).card.model_dump(mode="json")
    assert shown["opens"]["A1111"]["opens"] is True


@cache
def unet_tensors():
    """Return the smallest UNet that reads SD1's text and inpaints, under the names of checkpoints."""
    return unet_to_ldm(
        UNet2DConditionModel(
            in_channels=9,
            block_out_channels=(8,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=768,
        ).state_dict()
    )


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder with an overlay of each kind, a checkpoint and a file that is cut short, as the working folder."""
    monkeypatch.chdir(tmp_path)
    files = {"m00_linear.pt": "hypernet", "kohya_lora_d4a1.safetensors": "nature", "learned_embeds.bin": "nature"}
    for name, folder in files.items():
        shutil.copyfile(DATA / folder / name, tmp_path / name)
    (tmp_path / "kohya_lora_d4a1.json").write_text('{"activation text": "in ink", "preferred weight": 0.6}')
    write_safetensors(tmp_path / "sd15.safetensors", unet_tensors())
    (tmp_path / "hurt.safetensors").write_bytes(b"cut short")
    return tmp_path


def listed(capsys, *words: str) -> list[dict]:
    assert main(["list", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("shelf")
def test_list_says_of_each_file_what_it_is(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["hurt", "cannot"],
        ["kohya_lora_d4a1", "lora"],
        ["learned_embeds", "embedding"],
        ["m00_linear", "hypernet"],
        ["sd15", "checkpoint"],
    ]
    assert lines[1].endswith("LoRA, rank 4, 60 layers · SD1 · in ink")
    assert lines[4].endswith("checkpoint inpainting, UNet alone · SD1")


@pytest.mark.usefixtures("shelf")
def test_list_goes_on_past_a_file_that_cannot_be_read(capsys):
    found = {each["name"]: each for each in listed(capsys)}
    assert found["m00_linear"]["kind"] == "hypernet"
    assert found["m00_linear"]["error"] is None
    assert "hurt" in found["hurt"]["error"]


@pytest.mark.usefixtures("shelf")
@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--kind", "lora"], ["kohya_lora_d4a1"]),
        (["--family", "sd1"], ["kohya_lora_d4a1", "sd15"]),
        (["--search", "in INK"], ["kohya_lora_d4a1"]),
        (["--kind", "vae"], []),
    ],
)
def test_list_narrows_down(words, names, capsys):
    assert [each["name"] for each in listed(capsys, *words)] == names


def test_list_names_files_that_share_a_name_by_their_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for place in ("", "old"):
        (tmp_path / place).mkdir(exist_ok=True)
        shutil.copyfile(DATA / "hypernet" / "m00_linear.pt", tmp_path / place / "ink.pt")
    shutil.copyfile(DATA / "hypernet" / "m01_relu.pt", tmp_path / "inca.pt")
    assert main(["list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["inca", "ink.pt", "old/ink"]


def test_list_says_what_there_is_not(tmp_path, shelf, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["list", "empty"]) == 0
    assert capsys.readouterr().out == "no bases and no overlays here\n"
    assert main(["list", "--kind", "vae"]) == 0
    assert capsys.readouterr().out == "nothing here matches\n"
    assert main(["list", "--kind", "lorra"]) == USER_ERROR_STATUS
    assert "did you mean 'lora'" in capsys.readouterr().err


def shown(capsys, *words: str) -> dict[str, str]:
    assert main(["show", *words]) == 0
    return {line[:15].strip(): line[15:] for line in capsys.readouterr().out.splitlines()}


@pytest.mark.usefixtures("shelf")
def test_show_tells_of_a_lora_without_reading_it(capsys):
    found = shown(capsys, "kohya_lora_d4a1.safetensors")
    assert (found["kind"], found["structure"], found["family"]) == ("lora", "LoRA, rank 4, 60 layers", "SD1")
    assert found["trigger words"] == "in ink"
    assert found["in a prompt"] == "<lora:kohya_lora_d4a1:0.6>"
    assert found["hash"].startswith(sha256(Path("kohya_lora_d4a1.safetensors").read_bytes()).hexdigest()[:10])
    assert "AutoV3 " in found["on Civitai"]


@pytest.mark.usefixtures("shelf")
@pytest.mark.filterwarnings("ignore:learned_embeds.bin has vectors of 16 features")
def test_show_tells_of_a_checkpoint_and_an_embedding(capsys):
    found = shown(capsys, "sd15.safetensors")
    assert (found["kind"], found["family"], found["file"][:16]) == ("checkpoint", "SD1", "ldm, safetensors")
    values = sum(tensor.numel() for tensor in unet_tensors().values())
    assert found["parameters"] == f"{values:,} in {len(unet_tensors())} tensors, float32"
    assert shown(capsys, "learned_embeds.bin")["in a prompt"] == "learned_embeds"


def test_show_tells_which_files_beside_a_checkpoint_count(shelf, capsys):
    assert not any(label.startswith("beside") for label in shown(capsys, "sd15.safetensors"))
    (shelf / "sd15.vae.pt").write_bytes(b"")
    (shelf / "sd15.yaml").write_text("model:\n  params:\n    parameterization: v\n")
    assert main(["show", "sd15.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "beside: VAE    sd15.vae.pt, which replaces its own autoencoder" in lines
    assert "beside: yaml   sd15.yaml says that it predicts v, if the file does not say it" in lines
    assert main(["show", "sd15.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["beside"].keys() == {"VAE", "yaml"}


def test_show_tells_how_a_prompt_calls_what_has_a_tag(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    difference = velatura.Difference.for_base(tiny, name="robot")
    difference.card = difference.card.replace(note="a tin one")
    velatura.save(difference, "robot.safetensors")
    found = shown(capsys, "robot.safetensors")
    assert (found["kind"], found["in a prompt"]) == ("difference", "<difference:robot:1>")
    assert [label for label, value in found.items() if value == "a tin one"] == ["note"]


def test_show_tells_what_a_picture_was_made_by(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a red house", "--steps", "1", "--seed", "7", "--out", "house.png"]) == 0
    capsys.readouterr()
    assert main(["show", "house.png"]) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert (first, "Seed: 7" in last) == ("a red house", True)
    assert main(["show", "house.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 7


@pytest.mark.usefixtures("shelf")
def test_show_finds_a_file_by_its_name(capsys):
    assert shown(capsys, "SD15")["name"] == "sd15"
    assert main(["show", "sd51"]) == USER_ERROR_STATUS
    assert "no file is called 'sd51'" in capsys.readouterr().err
    assert main(["show", "sd51.safetensors"]) == USER_ERROR_STATUS
    assert "sd51.safetensors does not exist" in capsys.readouterr().err


@pytest.mark.usefixtures("shelf")
def test_show_as_json_has_all_that_is_known(capsys):
    assert main(["show", "kohya_lora_d4a1.safetensors", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["strength"], found["trigger_words"]) == (0.6, ["in ink"])
    assert found["hashes"]["sha256"] == sha256(Path("kohya_lora_d4a1.safetensors").read_bytes()).hexdigest()
    assert found["nature"]["card"]["kind"] == "lora"


@pytest.mark.usefixtures("shelf")
def test_show_says_why_a_file_cannot_be_read(capsys):
    assert main(["show", "hurt.safetensors"]) == USER_ERROR_STATUS
    assert "neither a safetensors nor a torch file" in capsys.readouterr().err


def test_convert_keeps_the_weights(inca, capsys):
    assert main(["convert", "inca.pt", "inca.safetensors"]) == 0
    before, after = velatura.open_overlay(inca), velatura.open_overlay(inca.with_suffix(".safetensors"))
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(after.state_dict()[key].equal(value) for key, value in before.state_dict().items())


def test_convert_replaces_nothing_unasked(inca):
    taken = inca.with_name("taken.safetensors")
    taken.write_bytes(b"somebody's work")
    with pytest.raises(AlreadyExists, match="--overwrite"):
        convert(inca, taken)
    assert taken.read_bytes() == b"somebody's work"
    convert(inca, taken, overwrite=True)
    assert velatura.open_overlay(taken).card.kind == "hypernet"


@pytest.mark.usefixtures("tiny")
def test_convert_gives_an_aesthetic_its_clip(tmp_path, capsys):
    vector = torch.randn(64, generator=torch.Generator().manual_seed(1))
    velatura.save(velatura.Aesthetic.from_vector(vector), tmp_path / "dusk.pt")
    clip = velatura.tiny_pictures("neon").parents[1] / "tiny" / "clip_vision"
    out = tmp_path / "dusk.safetensors"
    assert main(["convert", str(tmp_path / "dusk.pt"), str(out), "--clip", str(clip)]) == 0
    assert "aesthetic 64 features" in capsys.readouterr().out
    assert velatura.open_overlay(out).projection.shape == (64, 96)


def test_convert_gives_a_clip_to_nothing_else(inca):
    assert main(["convert", str(inca), str(inca.with_suffix(".safetensors")), "--clip", "."]) == 2


def test_convert_makes_a_lora_of_a_hypernetwork(hyper, tmp_path, capsys):
    velatura.save(hyper(widths=[96], name="inca"), tmp_path / "inca.pt")
    target = tmp_path / "inca-lora.safetensors"
    (tmp_path / "mine.txt").write_text("a red fox\na robot\na lighthouse\nan owl\n")
    options = ["--as", "lora", "--rank", "4", "--steps", "1", "--prompts", str(tmp_path / "mine.txt")]
    assert main(["convert", str(tmp_path / "inca.pt"), str(target), *options]) == 0
    ranks = {each.shape[0] for name, each in open_tensors(target).tensors.items() if name.endswith("lora_down.weight")}
    assert ranks == {4}
    assert "inca-lora.safetensors" in capsys.readouterr().out


@pytest.mark.usefixtures("inca")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--as", "embedding"], "no kind of overlay to convert to is called"),
        (["--rank", "4"], "are for --as lora"),
        (["--prediction", "v"], "are for --as lora"),
        (["--as", "lora", "--dialect", "a1111"], "--dialect and --dtype are for"),
    ],
)
def test_convert_refuses_what_it_would_not_do(words, said, capsys):
    assert main(["convert", "inca.pt", "x.safetensors", *words]) == USER_ERROR_STATUS
    assert said in capsys.readouterr().err
    assert not Path("x.safetensors").exists()


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_converting_there_and_back_gives_the_same_bytes(hyper, tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    other = ".safetensors" if ending == ".pt" else ".pt"
    velatura.save(hyper(activation="mish", layer_norm=True, dropout=0.2, name="ink"), f"ink{ending}")
    assert main(["convert", f"ink{ending}", f"ink{other}"]) == 0
    assert main(["convert", f"ink{other}", f"back{ending}"]) == 0
    assert Path(f"back{ending}").read_bytes() == Path(f"ink{ending}").read_bytes()
