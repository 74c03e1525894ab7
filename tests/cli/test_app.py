"""The command line as a person meets it: help at once, one line and exit status 2 for every mistake."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image

import velatura
from velatura.cli.app import COMMANDS, INTERRUPTED_STATUS, USER_ERROR_STATUS

CONSOLE = Path(sys.executable).with_name("velatura")
(ENTRY,) = entry_points(group="console_scripts", name="velatura")


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the console entry on some words in an empty folder: its status and what it wrote on stderr."""
    monkeypatch.chdir(tmp_path)
    entry = ENTRY.load()

    def run(*words: str) -> tuple[int, str]:
        status = entry(words)
        return status, capsys.readouterr().err

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def folders(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_dir()}


def test_help_lists_every_verb():
    done = subprocess.run([CONSOLE, "--help"], capture_output=True, text=True, check=True)
    assert [name for name in COMMANDS if f"│ {name} " in done.stdout] == list(COMMANDS)


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    program = (
        "import sys, json; from velatura.cli.app import main; status = main(sys.argv[1:]); "
        "print(json.dumps([status, *({'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0]


def test_the_list_of_verbs_is_had_without_pydantic():
    program = "import sys; from velatura.cli.app import main; main(['--help']); sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_no_words_show_the_help(command):
    assert command() == command("--help")


def test_a_misspelt_verb_is_one_line_with_the_nearest(command):
    status, said = command("generat", "a house")
    assert (status, said.count("\n")) == (USER_ERROR_STATUS, 1)
    assert "'generate'" in said


def test_an_unknown_option_is_one_line(command):
    status, said = command("generate", "a house", "--colour", "red")
    assert (status, said.count("\n")) == (USER_ERROR_STATUS, 1)
    assert "--colour" in said


@pytest.mark.parametrize(
    ("words", "meant"),
    [  # as A1111, diffusers' and kohya's scripts and stable-diffusion.cpp call them
        (("generate", "a house", "--num-inference-steps", "20"), "--steps"),
        (("generate", "a house", "--guidance_scale", "7"), "--cfg"),
        (("generate", "a house", "--negative-prompt", "fog"), "--negative"),
        (("generate", "a house", "--size", "64x64"), "--width and --height"),
        (("generate", "a house", "--n_iter", "4"), "--count"),
        (("generate", "a house", "--face_restoration_model", "GFPGAN"), "--face-restorer"),
        (("generate", "a house", "--ckpt", "x.safetensors"), "--base"),
        (("train", "hypernet", "neon", "--batch-size", "4"), "--batch"),
        (("train", "hypernet", "neon", "--learning_rate", "1e-3"), "--rate"),
        (("train", "hypernet", "neon", "--size", "64"), "--pixels"),
        (("train", "lora", "neon", "--network_dim", "8"), "--rank"),
        (("train", "hypernet", "neon", "--flip_aug"), "--set flip=true"),
        (("list", "--library", "models"), "the folder without an option"),
        (("train", "lora", "neon", "--gradient_accumulation_steps", "2"), "--set accumulation=VALUE"),
        (("train", "lora", "neon", "--gradient-norm", "2"), "--set gradient_norm=VALUE"),
    ],
)
def test_options_of_other_programs_are_answered_with_ours(words, meant, command):
    status, said = command(*words)
    assert (status, said.count("\n")) == (USER_ERROR_STATUS, 1)
    assert said.strip().endswith(f"velatura calls it {meant} (see --help)")


def test_an_option_written_nearly_right_is_answered_with_the_nearest(command):
    status, said = command("generate", "a house", "--sampeler", "DDIM")
    assert status == USER_ERROR_STATUS
    assert "did you mean --sampler" in said


def no_folder(desk: Path) -> list[str]:
    return ["train", "hypernet", "photos", "--out", "run"]


def no_pictures(desk: Path) -> list[str]:
    (desk / "photos").mkdir()
    (desk / "photos" / "notes.md").write_text("pictures come later")
    return ["train", "hypernet", "photos", "--out", "run"]


def photos(desk: Path) -> Path:
    """Lay a folder of two captioned pictures on the desk."""
    folder = desk / "photos"
    folder.mkdir()
    for colour in ("teal", "ochre"):
        Image.effect_noise((64, 64), 64).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} wall")
    return folder


def broken_picture(desk: Path) -> list[str]:
    broken = photos(desk) / "teal.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return ["train", "hypernet", "photos", "--out", "run"]


def captionless_picture(desk: Path) -> list[str]:
    folder = photos(desk)
    (folder / "teal.png").rename(folder / "IMG_0001.png")
    return ["train", "hypernet", "photos", "--out", "run"]


def bad_rate(desk: Path) -> list[str]:
    photos(desk)
    return ["train", "hypernet", "photos", "--rate", "fast", "--out", "run"]


def unknown_sampler(desk: Path) -> list[str]:
    return ["generate", "a house", "--sampler", "Eular b", "--out", "pictures"]


def malformed_tag(desk: Path) -> list[str]:
    velatura.save(velatura.Hypernetwork.for_base(velatura.tiny()), desk / "inca.safetensors")
    return ["generate", "a house <hypernet:inca:strong>", "--out", "pictures"]


def unknown_overlay(desk: Path) -> list[str]:
    return ["generate", "a house <hypernet:nowhere:1>", "--out", "pictures"]


def damaged_overlay(desk: Path) -> list[str]:
    (desk / "inca.pt").write_bytes(b"PK\x03\x04 cut short")
    return ["show", "inca.pt"]


def damaged_overlay_converted(desk: Path) -> list[str]:
    (desk / "inca.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    return ["convert", "inca.safetensors", "inca.pt"]


def missing_overlay(desk: Path) -> list[str]:
    return ["convert", "nowhere.pt", "inca.safetensors"]


def no_steps(desk: Path) -> list[str]:
    return ["generate", "a house", "--steps", "0", "--out", "pictures"]


# Each lays a mistake on the desk and returns the words that run into it; beside it, what the line must name.
MISTAKES: dict[Callable[[Path], list[str]], str] = {
    no_folder: "photos",
    no_pictures: "photos",
    broken_picture: "teal.png",
    captionless_picture: "IMG_0001.png",
    bad_rate: "fast",
    unknown_sampler: "'Euler",
    malformed_tag: "strong",
    unknown_overlay: "nowhere",
    damaged_overlay: "inca.pt",
    damaged_overlay_converted: "inca.safetensors",
    missing_overlay: "nowhere.pt",
    no_steps: "steps",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(mistake, command, tmp_path):
    words = mistake(tmp_path)
    before = files(tmp_path), folders(tmp_path)
    status, said = command(*words)
    assert status == USER_ERROR_STATUS
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert MISTAKES[mistake] in said
    assert (files(tmp_path), folders(tmp_path)) == before


def test_the_installed_command_exits_with_2(tmp_path):
    words = no_folder(tmp_path)
    done = subprocess.run([CONSOLE, *words], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.filterwarnings("default::velatura.errors.VelaturaWarning")
def test_a_warning_is_one_line(command):
    status, said = command("generate", "a [red:blue:0,5] house", "--steps", "1", "--out", "pictures")
    warned = [line for line in said.splitlines() if line.startswith("warning: ")]
    assert (status, len(warned)) == (0, 1)


def test_ctrl_c_is_one_word_and_130(command, tmp_path):
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)  # what Ctrl-C does, a second from now
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        status, said = command("generate", "a house", "--steps", "150", "--count", "16", "--out", "pictures")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert status == INTERRUPTED_STATUS
    assert said.splitlines()[-1].startswith("interrupted")
    assert not files(tmp_path)
