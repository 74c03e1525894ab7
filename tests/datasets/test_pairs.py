"""Pictures before an edit and after it, which pix2pix models learn from."""

import numpy as np
import pytest
from PIL import Image

from velatura.cli.app import main
from velatura.datasets.check import check_folder
from velatura.datasets.crop import CropOptions, crop_folder
from velatura.datasets.folder import read_dataset
from velatura.errors import BadDataset
from velatura.training.data.fingerprint import fingerprint_examples


def draw(path, colour="red", size=(64, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two pairs in the two layouts, in a folder that counts three times, and a picture without one before it."""
    pictures = tmp_path / "pictures"
    draw(pictures / "a house.png")
    draw(pictures / "before" / "a house.jpg", "blue", (32, 32))
    draw(pictures / "3_boats" / "a boat.png")
    draw(pictures / "3_boats" / "a boat.before.webp", "blue")
    draw(pictures / "a tree.png")
    (pictures / "a house.txt").write_text("make it red")
    return pictures


def test_a_picture_before_an_edit_is_in_a_folder_or_beside(folder):
    examples = {example.path.name: example for example in read_dataset(folder).examples}
    assert {name: example.before and example.before.name for name, example in examples.items()} == {
        "a house.png": "a house.jpg",
        "a boat.png": "a boat.before.webp",
        "a tree.png": None,
    }
    assert examples["a house.png"].caption == "make it red"
    assert examples["a boat.png"].repeats == 3
    assert not check_folder(folder, 64).errors


def test_one_without_a_picture_after_it_is_refused(folder):
    orphan = draw(folder / "before" / "a cat.png")
    with pytest.raises(BadDataset, match=r"the picture before an edit .*a cat\.png has no picture"):
        read_dataset(folder)
    assert [finding.kind for finding in check_folder(folder, 64).errors] == ["pair"]
    orphan.unlink()
    draw(folder / "a cat.before.png")
    with pytest.raises(BadDataset, match=r"a cat\.before\.png has no picture"):
        read_dataset(folder)


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (128, 120)])
def test_two_pictures_of_other_shapes_are_refused(folder, size):
    draw(folder / "before" / "a house.jpg", "blue", size)
    with pytest.raises(BadDataset, match=rf"is {size[0]}x{size[1]} pixels and .*a house\.png 64x64: crop both"):
        read_dataset(folder)
    assert "crop both" in check_folder(folder, 64).errors[0].text


def test_a_damaged_one_is_found_before_anything_is_loaded(folder, capsys, monkeypatch):
    path = draw(folder / "before" / "a house.png", "blue")
    (folder / "before" / "a house.jpg").unlink()
    path.write_bytes(path.read_bytes()[:-30])
    monkeypatch.setattr("velatura.cli.train.session.open_base", None)
    assert main(["train", "lora", str(folder), "--dry-run"]) == 2
    assert "a house.png" in capsys.readouterr().err
    assert [finding.kind for finding in check_folder(folder, 64).errors] == ["pair"]


def test_both_are_cropped_alike(tmp_path):
    left_half = np.zeros((64, 128, 3), np.uint8)
    left_half[:, :64] = 255
    draw(tmp_path / "in" / "a house.png", size=(128, 64))
    (tmp_path / "in" / "before").mkdir()
    Image.fromarray(left_half[::2, ::2]).save(tmp_path / "in" / "before" / "a house.png")
    crops = crop_folder(tmp_path / "in", tmp_path / "out", CropOptions(pixels=32, mirrors=True))
    examples = read_dataset(tmp_path / "out").examples
    assert len(examples) == len(crops) == 2
    for example, crop, is_mirrored in zip(examples, crops, (False, True), strict=True):
        with Image.open(example.before) as before:
            assert before.size == (32, 32)
            white = np.asarray(before.convert("L")) > 127
        left, _, right, _ = crop.box
        share = (np.clip(64, left, right) - left) / (right - left)
        assert (white[:, ::-1] if is_mirrored else white).mean() == pytest.approx(share, abs=0.1)


def test_a_change_of_one_is_noticed_on_resume(folder):
    before = fingerprint_examples(read_dataset(folder).examples)
    draw(folder / "before" / "a house.jpg", "green", (32, 32))
    after = fingerprint_examples(read_dataset(folder).examples)
    assert [name for name in before if before[name] != after[name]] == ["a house.png"]
