import os
import shutil
from pathlib import Path

import pytest

import velatura
from velatura.errors import BadFile, UnknownName, VelaturaWarning

DATA = Path(__file__).parents[1] / "data"


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
    with pytest.warns(VelaturaWarning, match=r"two.ink\.safetensors and .*one.ink\.safetensors are both called 'ink'"):
        assert velatura.Library(tmp_path / "two", tmp_path / "one").overlay("ink").card.name == "two"


def test_one_stem_in_two_folders_is_warned_of_only_when_it_is_called(folder, hyper):
    velatura.save(hyper(), folder / "deep" / "ink.safetensors")
    library = velatura.Library(folder)
    assert library.names() == ["ink", "neon"]
    assert library.overlay("neon")
    with pytest.warns(VelaturaWarning, match="are both called 'ink'"):
        library.overlay("ink")


def test_one_overlay_in_two_formats_is_not_ambiguous(folder, hyper):
    velatura.save(hyper(), folder / "Ink.safetensors")
    assert velatura.Library(folder, folder).path("ink") == folder / "Ink.safetensors"


@pytest.mark.parametrize("place", [".venv/lib", ".git", "ink/snapshots"])
def test_hidden_folders_and_snapshots_are_passed_over(folder, hyper, place):
    velatura.save(hyper(), folder / place / "step-100.safetensors")
    velatura.save(hyper(), folder / ".half.safetensors")
    assert velatura.Library(folder).names() == ["Ink", "neon"]


def test_snapshots_are_found_where_they_are_asked_for(folder, hyper):
    velatura.save(hyper(), folder / "snapshots" / "step-100.safetensors")
    assert velatura.Library(folder / "snapshots").names() == ["step-100"]


def test_what_is_no_file_is_passed_over(folder):
    (folder / "folder.pt").mkdir()
    (folder / "gone.safetensors").symlink_to(folder / "nowhere.safetensors")
    assert velatura.Library(folder).names() == ["Ink", "neon"]


def test_a_name_in_no_folder_is_put_right(folder):
    with pytest.raises(UnknownName) as caught:
        velatura.Library(folder).overlay("nion")
    assert str(caught.value).startswith(f"no overlay is called 'nion' in {folder}: did you mean 'neon'")


def test_where_nothing_lies_the_folders_are_named(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(UnknownName, match=r"'ink' in .*runs: if it is in another folder, name that with --library"):
        velatura.Library(tmp_path / "runs").overlay("ink")


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(BadFile, match="is not a folder"):
        velatura.Library(tmp_path / "nowhere")


def test_linked_folders_are_searched_and_circles_end(hyper, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    velatura.save(hyper(), elsewhere / "ink.pt")
    models = tmp_path / "models"
    models.mkdir()
    (models / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(models)
    assert velatura.Library(models).names() == ["ink"]


@pytest.mark.parametrize("family", ["SD1", "sd1.5", "SD15", "1.5"])
def test_files_are_listed_by_the_names_that_people_give_families(tmp_path, family):
    shutil.copyfile(DATA / "hypernet" / "m00_linear.pt", tmp_path / "inca.pt")
    (tmp_path / "inca.json").write_text('{"sd version": "SD1"}')
    library = velatura.Library(tmp_path)
    assert [entry.name for entry in library.entries(family=family)] == ["inca"]
    assert library.entries(family="XL") == []


def test_a_family_that_does_not_exist_is_refused(folder):
    with pytest.raises(UnknownName, match="no family of bases is called 'flux'"):
        velatura.Library(folder).entries(family="flux")


def test_the_family_in_the_notes_of_a_file_is_in_the_error_about_its_base(tmp_path, tiny, lora):
    made = lora()
    made.card = made.card.replace(family="")
    velatura.save(made, tmp_path / "ink.safetensors")
    (tmp_path / "ink.json").write_text('{"sd version": "SD1"}')
    assert velatura.Library(tmp_path).overlay("ink").card.family == "SD1"


def test_broken_files_are_not_suggested_as_bases(tmp_path):
    (tmp_path / "anime.safetensors").write_text("broken")
    with pytest.raises(UnknownName, match=r"no base is called 'animes' in .*: if it is in another folder"):
        velatura.Library(tmp_path).base("animes")


def test_overlays_beyond_a_limit_are_forgotten_the_oldest_first(folder, monkeypatch):
    library = velatura.Library(folder)
    ink, neon = library.overlay("ink"), library.overlay("neon")
    assert library.overlay("ink") is ink
    monkeypatch.setattr("velatura.library.loaded.MAX_LOADED_BYTES", 1)
    os.utime(folder / "Ink.pt", (1, 1))
    late = library.overlay("ink")
    assert late is not ink
    assert library.overlay("ink") is late  # the last one is kept whatever its size
    assert library.overlay("neon") is not neon
