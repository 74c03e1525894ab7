"""Masks and alpha channels as weights of the loss."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from velatura.datasets.folder import Example, read_dataset
from velatura.datasets.loss_weights import loss_weights, normalize_weights
from velatura.errors import BadDataset
from velatura.tensors import open_tensors

GOLDEN = Path(__file__).parents[1] / "data" / "a1111" / "train"  # made by the webui v1.8.0
CASES = json.loads((GOLDEN / "dataset.json").read_text())["alpha_weights"]
SQUARE = [case["file"] for case in CASES if len(set(case["target"])) == 1]  # others have their sides swapped there


def picture(folder, name="a cat.png", size=(16, 16), mode="RGB"):
    folder.mkdir(exist_ok=True)
    Image.new(mode, size, "white").save(folder / name)
    return folder / name


def half_white(size=(16, 16)):
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


@pytest.mark.parametrize("name", SQUARE)
def test_alpha_weighs_as_in_the_webui(name):
    expected = open_tensors(GOLDEN / "weights.safetensors").tensors[f"w{name[5]}"]
    with Image.open(GOLDEN / name) as image:
        weights = normalize_weights(image.getchannel("A"), (2, 2), is_alpha=True)
    assert torch.equal(weights.expand_as(expected), expected)


def test_the_alpha_of_a_whole_file_weighs_the_same():
    expected = open_tensors(GOLDEN / "weights.safetensors").tensors["w1"][0]
    weights = loss_weights(Example(GOLDEN / "alpha1.png", ""), (16, 16), (2, 2))
    assert torch.equal(weights, expected)


def test_a_picture_without_transparency_or_with_the_same_everywhere_weighs_nothing(tmp_path):
    assert loss_weights(Example(picture(tmp_path), ""), (16, 16), (2, 2)) is None
    assert loss_weights(Example(picture(tmp_path, mode="RGBA"), ""), (16, 16), (2, 2)) is None


@pytest.mark.parametrize("place", ["mask/a cat.png", "masks/a cat.webp", "a cat-masklabel.png"])
def test_a_mask_says_what_is_learned(tmp_path, place):
    picture(tmp_path)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    half_white().save(tmp_path / place, lossless=True)
    (example,) = read_dataset(tmp_path).examples
    assert example.mask == tmp_path / place
    weights = loss_weights(example, (16, 16), (8, 8))
    assert weights.mean() == pytest.approx(1)
    assert weights[:, :3].allclose(torch.tensor(2.0), atol=0.1)
    assert weights[:, 5:].allclose(torch.tensor(0.0), atol=0.1)


def test_a_mask_is_cut_as_its_picture_is(tmp_path):
    picture(tmp_path, size=(32, 16))
    (tmp_path / "mask").mkdir()
    half_white((64, 32)).save(tmp_path / "mask" / "a cat.png")
    weights = loss_weights(read_dataset(tmp_path).examples[0], (16, 16), (4, 4))
    assert weights[0].tolist() == pytest.approx([2, 2, 0, 0], abs=0.3)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (Image.new("L", (32, 16), 255), "is 32x16, its picture 16x16: draw the mask"),
        (Image.new("L", (16, 16)), "is black, so nothing"),
    ],
)
def test_a_mask_of_other_proportions_or_without_white_is_refused(tmp_path, mask, reason):
    picture(tmp_path)
    (tmp_path / "mask").mkdir()
    mask.save(tmp_path / "mask" / "a cat.png")
    with pytest.raises(BadDataset, match=reason):
        loss_weights(read_dataset(tmp_path).examples[0], (16, 16), (4, 4))


def test_a_mask_of_no_picture_is_refused(tmp_path):
    picture(tmp_path)
    (tmp_path / "mask").mkdir()
    half_white().save(tmp_path / "mask" / "a dog.png")
    with pytest.raises(BadDataset, match=r"the mask .* has no picture: give both the same name"):
        read_dataset(tmp_path)
