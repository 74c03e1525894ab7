"""Faces are restored by `velatura generate --restore-faces` and by `velatura upscale --restore-faces`."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from PIL import Image

import velatura
from tests.face_restoration.states import CODEFORMER, GFPGAN, RETINAFACE
from tests.face_restoration.test_pictures import find_one_face, save_face_models
from velatura.cli.app import main

GENERATE = ["generate", "a house", "--steps", "1", "--seed", "7"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VELATURA_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("options", [["--restore-faces"], ["--set", "restore_faces=true"]])
def test_without_the_files_it_is_refused_before_a_picture_is_made(folder, capsys, options):
    for command in (GENERATE, ["grid", "a house", "--x", "seed=1,2"]):
        assert main([*command, *options]) == 2
        printed = capsys.readouterr().err
        assert "GFPGANv1.4.pth is not in the library: put it into models/" in printed
        assert printed.count("\n") == 1
    assert not (folder / "pictures").exists()


@pytest.mark.filterwarnings("always")
def test_a_recipe_that_restores_faces_is_made_without_where_the_files_are_missing(folder, capsys):
    text = "a house\nSteps: 1, Sampler: Euler a, CFG scale: 7, Seed: 7, Face restoration: GFPGAN, Size: 64x64, RNG: CPU"
    (folder / "recipe.txt").write_text(text)
    assert main(["generate", "--recipe", "recipe.txt", "--out", "again.png"]) == 0
    assert "faces are not restored: GFPGANv1.4.pth is not in the library" in capsys.readouterr().err
    assert not velatura.Recipe.from_image(folder / "again.png").restore_faces
    assert main(["generate", "--recipe", "recipe.txt", "--restore-faces"]) == 2


def test_faces_are_restored_in_new_pictures(folder, monkeypatch):
    save_face_models(folder, GFPGAN, CODEFORMER, RETINAFACE)
    find_one_face(monkeypatch)
    options = ["--restore-faces", "--face-restorer", "gfpgan", "--out", "restored.png"]
    assert main([*GENERATE, "--out", "plain.png"]) == main([*GENERATE, *options]) == 0
    with Image.open("plain.png") as plain, Image.open("restored.png") as restored:
        assert plain.tobytes() != restored.tobytes()
        assert "Face restoration: GFPGAN" in restored.info["parameters"]


def test_faces_are_restored_in_pictures_that_are_there(folder, monkeypatch):
    save_face_models(folder, CODEFORMER, RETINAFACE)
    find_one_face(monkeypatch)
    Image.new("RGB", (64, 64), (90, 80, 70)).save("old.png")
    words = ["upscale", "old.png", "--restore-faces", "--codeformer-weight", "0"]
    assert main([*words, "--out", "restored.png"]) == 0
    assert main([*words, "--upscaler", "Nearest", "--scale", "2", "--out", "large.png"]) == 0
    with Image.open("restored.png") as restored, Image.open("large.png") as large:
        assert restored.getpixel((32, 32)) != (90, 80, 70)
        assert restored.getpixel((0, 0)) == (90, 80, 70)
        assert large.tobytes() == restored.resize((128, 128), Image.Resampling.NEAREST).tobytes()


@pytest.mark.filterwarnings("always")
def test_upscale_says_what_its_options_do_not_change(folder, capsys):
    save_face_models(folder, GFPGAN, RETINAFACE)
    Image.new("RGB", (64, 64), (90, 80, 70)).save("old.png")
    for option in ("--face-restorer GFPGAN", "--codeformer-weight 0.5"):
        assert main(["upscale", "old.png", "--upscaler", "Nearest", *option.split()]) == 2
        assert f"{option} changes nothing without --restore-faces: give that too" in capsys.readouterr().err
    words = ["upscale", "old.png", "--restore-faces", "--codeformer-weight", "0.5", "--out", "restored.png"]
    assert main(words) == 0
    message = "--codeformer-weight 0.5 changes nothing with GFPGAN: CodeFormer alone has it"
    assert f"warning: {message}" in capsys.readouterr().err.splitlines()


def test_upscale_takes_the_path_of_a_restorer(folder, monkeypatch, capsys):
    save_face_models(folder, RETINAFACE)
    save_face_models(folder / "elsewhere", GFPGAN, name="mine.pth")
    find_one_face(monkeypatch)
    Image.new("RGB", (64, 64), (90, 80, 70)).save("old.png")
    words = ["upscale", "old.png", "--restore-faces", "--library", "models", "--out", "restored.png"]
    assert main([*words, "--face-restorer", "elsewhere/models/GFPGAN/mine.pth"]) == 0
    with Image.open("restored.png") as restored:
        assert restored.getpixel((32, 32)) != (90, 80, 70)
    assert main([*words, "--overwrite", "--face-restorer", "old.png"]) == 2
    assert main([*words, "--overwrite", "--face-restorer", "models/GFPGAN/detection_Resnet50_Final.pth"]) == 2
    assert "is RetinaFace, which detects faces: give a file of GFPGAN" in capsys.readouterr().err


def test_upscale_shows_how_many_faces_are_restored(folder, monkeypatch):
    save_face_models(folder, CODEFORMER, RETINAFACE)
    find_one_face(monkeypatch)
    bars: dict[str, list[tuple[int, int | None]]] = {}

    @contextmanager
    def bar(label: str):
        bars[label] = []
        yield lambda done, total: bars[label].append((done, total))

    monkeypatch.setattr("velatura.cli.upscale.progress_bar", bar)
    Image.new("RGB", (64, 64), (90, 80, 70)).save("old.png")
    assert main(["upscale", "old.png", "--restore-faces", "--out", "restored.png"]) == 0
    assert bars == {"restoring faces": [(0, 1), (1, 1)]}


def test_the_library_lists_them(folder, capsys):
    save_face_models(folder, GFPGAN, RETINAFACE)
    assert main(["list", ".", "--kind", "face-restorer"]) == 0
    printed = capsys.readouterr().out
    assert "GFPGANv1.4" in printed
    assert "detection" not in printed
