"""Zips of pictures: what becomes of their folders, of the cache, and of what `dataset check` says of them."""

import json
import zipfile

import pytest

import velatura
from tests.hostile.dataset_cases import CAPTION, PICTURE, zipped
from velatura.cli.app import main
from velatura.datasets import zip_files
from velatura.datasets.check import check_folder
from velatura.datasets.zip_files import unpack_dataset
from velatura.errors import BadDataset, VelaturaWarning


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VELATURA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "datasets"


def write_zip(tmp_path, *names):
    """Write a zip of a picture with a caption under each of some names."""
    pairs = [pair for name in names for pair in ((f"{name}.png", PICTURE), (f"{name}.txt", CAPTION))]
    (tmp_path / "house.zip").write_bytes(zipped(*pairs))
    return tmp_path / "house.zip"


# kohya's layout: the number of a folder is how often its pictures count, wherever the zip begins
@pytest.mark.parametrize(
    ("names", "repeats"),
    [
        (["10_house/a"], [10]),
        (["photos/10_house/a"], [10]),
        (["10_house/a", "3_cat/b"], [10, 3]),
        (["house/a"], [1]),
        (["a/b/c/d"], [1]),
        (["20231105_holiday/a"], [1]),  # a date
    ],
)
def test_folders_around_all_pictures_keep_their_meaning(tmp_path, names, repeats):
    examples = velatura.read_dataset(write_zip(tmp_path, *names)).examples
    assert [example.repeats for example in examples] == repeats


def test_class_pictures_alone_are_no_training_pictures(tmp_path):
    with pytest.raises(BadDataset, match="contains no pictures"):
        velatura.read_dataset(write_zip(tmp_path, "reg/1_house/a"))
    dataset = velatura.read_dataset(write_zip(tmp_path, "set/10_house/a", "set/reg/1_house/b"))
    assert (len(dataset.examples), len(dataset.regularisation)) == (1, 1)


def test_a_zip_is_hashed_and_unpacked_once(tmp_path, monkeypatch):
    path = write_zip(tmp_path, "a")
    folder = unpack_dataset(path)
    monkeypatch.setattr(zip_files, "hash_file", None)
    monkeypatch.setattr(zip_files, "_unpack", None)
    assert unpack_dataset(path) == folder


def test_what_was_removed_from_the_cache_is_unpacked_again(tmp_path):
    path = write_zip(tmp_path, "a", "b")
    folder = unpack_dataset(path)
    (folder / "a.png").unlink()
    assert (unpack_dataset(path) / "a.png").is_file()
    (folder / zip_files.RECORD_NAME).unlink()
    assert len(velatura.read_dataset(path).examples) == 2


def test_of_two_processes_the_second_takes_what_the_first_unpacked(tmp_path, monkeypatch, cache):
    path = write_zip(tmp_path, "a")
    describe = zip_files._describe

    def unpack_meanwhile(*arguments):
        monkeypatch.setattr(zip_files, "_describe", describe)
        unpack_dataset(path)
        return describe(*arguments)

    monkeypatch.setattr(zip_files, "_describe", unpack_meanwhile)
    folder = unpack_dataset(path)
    assert (folder / "a.png").is_file()
    assert [found.name for found in cache.iterdir()] == [folder.name]  # and nothing temporary


def test_check_says_of_a_zip_what_training_does(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "house.zip", "w") as archive:
        archive.writestr("1.png", PICTURE)  # whose name gives no words
    with pytest.warns(VelaturaWarning, match="learned without words"):
        velatura.read_dataset(tmp_path / "house.zip")
    report = check_folder(tmp_path / "house.zip", 64)
    assert not report.errors
    assert [finding.text for finding in report.findings if finding.kind == "caption"] == [
        "it has no caption, so it is learned without words; write what it shows into a .txt file"
    ]
    assert main(["dataset", "check", str(tmp_path / "house.zip"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "house.zip")


def test_the_name_of_a_zip_is_that_of_its_subject(tmp_path):
    """A word that all captions share is a fault, unless it is the name."""
    pairs = [(f"{number}.png", PICTURE) for number in range(4)]
    texts = [
        (f"{number}.txt", f"a house in {place}".encode()) for number, place in enumerate(("snow", "rain", "fog", "sun"))
    ]
    for name in ("house", "boat"):
        (tmp_path / f"{name}.zip").write_bytes(zipped(*pairs, *texts))
        (tmp_path / name).mkdir()
        for file, data in (*pairs, *texts):
            (tmp_path / name / file).write_bytes(data)
        found, expected = (
            {finding.text for finding in check_folder(path, 64).findings}
            for path in (tmp_path / f"{name}.zip", tmp_path / name)
        )
        assert found == expected
