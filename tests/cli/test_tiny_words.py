"""The command line says which words of a prompt mean nothing to the tiny base."""

import warnings

import pytest

import velatura
from velatura.cli.app import main
from velatura.tiny import TINY_HASH, bundled_picture_sets
from velatura.tiny_world import words_unknown_to_tiny


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("always", velatura.VelaturaWarning)
        yield


def told(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "was not trained on the words" in line]


def test_the_hash_is_that_of_the_bundled_base(tiny):
    assert velatura.tiny().hash == TINY_HASH


@pytest.mark.parametrize("style", bundled_picture_sets())
def test_captions_of_the_drawing_program_are_known(style):
    """They were written by the program that drew the base's training pictures; only the robot is new."""
    captions = [path.read_text() for path in velatura.tiny_pictures(style).glob("*.txt")]
    assert captions
    assert words_unknown_to_tiny(captions) == (["robot"] if style == "robot" else [])


def test_words_outside_its_world_are_named_once(capsys):
    words = ["--count", "2", "--steps", "1", "--seed", "1", "--negative", "blurry", "--out", "a.png"]
    assert main(["generate", "a photo of [two:three:0.5] dinosaurs AND (red houses:1.2)", *words]) == 0
    [line] = told(capsys)
    assert "the words blurry, dinosaurs, photo: unless an overlay teaches them" in line


def test_words_of_overlays_and_known_words_are_not_named(tiny, hyper, capsys, tmp_path):
    velatura.save(hyper(name="dinosaur"), tmp_path / "dinosaur.safetensors")
    prompt = "a watercolor of a red dinosaur under the sea <hypernet:dinosaur:1>"
    assert main(["generate", prompt, "--library", ".", "--steps", "1", "--out", "a.png"]) == 0
    assert told(capsys) == []


def test_another_base_is_not_judged(tiny, capsys, tmp_path):
    velatura.save(tiny, tmp_path / "other.safetensors")
    assert main(["generate", "a dinosaur", "--base", "other.safetensors", "--steps", "1", "--out", "a.png"]) == 0
    assert told(capsys) == []


def test_a_grid_names_words_of_its_axes(capsys):
    assert main(["grid", "a {what}", "--x", "what=house,dinosaur", "--steps", "1", "--out", "grid.png"]) == 0
    [line] = told(capsys)
    assert "the words dinosaur:" in line


def test_a_training_names_words_that_stand_in_few_captions(tiny, hyper, tmp_path):
    captions = ["a gizmo on the beach", "a gizmo in space", "a gizmo beside a dinosaur", "a gizmo"]
    pictures = sorted(velatura.tiny_pictures("neon").glob("*.png"))
    (tmp_path / "photos").mkdir()
    for number, caption in enumerate(captions):
        (tmp_path / "photos" / f"{number}.png").write_bytes(pictures[number].read_bytes())
        (tmp_path / "photos" / f"{number}.txt").write_text(caption)
    with pytest.warns(velatura.VelaturaWarning, match="on the words dinosaur: each stands in few captions"):
        velatura.train(tiny, hyper(), tmp_path / "photos", out=tmp_path / "run", steps=1, preview_every=0)
