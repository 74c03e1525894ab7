import os

import pytest

import velatura
from velatura.errors import BadFile, UnknownName


@pytest.fixture
def folder(hyper, tmp_path):
    velatura.save(hyper(), tmp_path / "Ink.pt")
    velatura.save(hyper(), tmp_path / "deep" / "neon.safetensors")
    (tmp_path / "Ink.txt").write_text("a caption")
    return tmp_path


def test_names_are_the_stems_of_overlays(folder):
    assert velatura.Library(folder).names() == ["Ink", "neon"]


def test_an_overlay_is_found_whatever_its_case_and_loaded_once(folder):
    library = velatura.Library(folder)
    assert library.overlay("INK") is library.overlay("ink")
    assert library.path("ink") == folder / "Ink.pt"


def test_a_changed_file_is_loaded_again(folder):
    library = velatura.Library(folder)
    before = library.overlay("ink")
    os.utime(folder / "Ink.pt", (1, 1))
    assert library.overlay("ink") is not before


def test_a_new_file_is_found(folder, hyper):
    library = velatura.Library(folder)
    velatura.save(hyper(), folder / "late.safetensors")
    assert library.overlay("late").kind == "hypernet"


def test_a1111s_folders_are_understood(tmp_path, hyper):
    velatura.save(hyper(), tmp_path / "models" / "hypernetworks" / "anime" / "inca.pt")
    velatura.save(hyper(), tmp_path / "models" / "hypernetworks" / "None.pt")
    (tmp_path / "models" / "Stable-diffusion").mkdir()
    (tmp_path / "models" / "Stable-diffusion" / "sd15.safetensors").write_text("not read")
    assert velatura.Library(tmp_path).names() == ["inca"]
    assert velatura.Library(tmp_path / "models").names() == ["inca"]


def test_the_folder_given_first_wins(tmp_path, hyper):
    for place in ("one", "two"):
        velatura.save(hyper(name=place), tmp_path / place / "ink.safetensors")
    assert velatura.Library(tmp_path / "two", tmp_path / "one").overlay("ink").card.name == "two"


def test_a_name_in_no_folder_is_put_right(folder):
    with pytest.raises(UnknownName, match="no overlay is called 'nion': did you mean 'neon'"):
        velatura.Library(folder).overlay("nion")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BadFile, match="is no folder"):
        velatura.Library(tmp_path / "nowhere")
