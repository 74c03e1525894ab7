import json
from hashlib import sha256
from pathlib import Path

import pytest

import velatura
from velatura.cli.app import MISTAKE, main
from velatura.cli.files import convert
from velatura.errors import Occupied
from velatura.formats.verdict import examine
from velatura.tensors import open_tensors


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
    assert shown == examine(inca).model_dump(mode="json")
    assert shown["card"] == velatura.open_overlay(inca).card.model_dump(mode="json")
    assert shown["opens"]["A1111"]["opens"] is True


@pytest.mark.usefixtures("inca")
def test_list_names_what_a_prompt_may_call(capsys):
    assert main(["list"]) == 0
    assert capsys.readouterr().out.startswith("inca  hypernet")


def test_list_goes_on_past_a_file_that_cannot_be_read(inca, capsys):
    (inca.parent / "hurt.safetensors").write_bytes(b"cut short")
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["inca"]["kind"] == "hypernet"
    assert "hurt" in listed["hurt"]["error"]


def test_an_empty_folder_says_so(tmp_path, capsys):
    assert main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no overlays here\n"


def test_convert_keeps_the_weights(inca, capsys):
    assert main(["convert", "inca.pt", "inca.safetensors"]) == 0
    before, after = velatura.open_overlay(inca), velatura.open_overlay(inca.with_suffix(".safetensors"))
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(after.state_dict()[key].equal(value) for key, value in before.state_dict().items())


def test_convert_replaces_nothing_unasked(inca):
    taken = inca.with_name("taken.safetensors")
    taken.write_bytes(b"somebody's work")
    with pytest.raises(Occupied, match="--overwrite"):
        convert(inca, taken)
    assert taken.read_bytes() == b"somebody's work"
    convert(inca, taken, overwrite=True)
    assert velatura.open_overlay(taken).card.kind == "hypernet"


@pytest.mark.usefixtures("tiny")
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
        (["--as", "lora", "--dialect", "a1111"], "--dialect is for"),
    ],
)
def test_convert_refuses_what_it_would_not_do(words, said, capsys):
    assert main(["convert", "inca.pt", "x.safetensors", *words]) == MISTAKE
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
