"""Inpainting and pix2pix models on the command line."""

import json

import numpy as np
import pytest
from PIL import Image

import velatura
from velatura.cli.app import USER_ERROR_STATUS, main

FEW = ("--steps", "2", "--seed", "1", "--json")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An image and a mask in the working folder."""
    monkeypatch.chdir(tmp_path)
    shades = np.linspace(0, 255, 64 * 64, dtype=np.uint8).reshape(64, 64)
    Image.fromarray(shades).convert("RGB").save("x.png")
    white = np.zeros((64, 64), np.uint8)
    white[16:48, 16:48] = 255
    Image.fromarray(white).save("m.png")


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("option", ["--image", "--init-image"])
def test_a_mask_is_filled_by_an_inpainting_model(inpainting, option, capsys):
    velatura.save(inpainting, "inpaint.safetensors")
    words = ["generate", "a house", "--base", "inpaint.safetensors", option, "x.png", "--mask", "m.png", *FEW]
    assert main([*words, "--mask-blur", "0", "--inpainting-mask-weight", "0.5", "--out", "made.png"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["recipe"]["inpainting_mask_weight"] == 0.5
    made, image = (pixels(name) for name in ("made.png", "x.png"))
    assert np.array_equal(made[:16], image[:16])
    assert not np.array_equal(made[16:48, 16:48], image[16:48, 16:48])


def test_the_shades_of_a_mask_are_kept_on_request(capsys):
    Image.new("L", (64, 64), 102).save("grey.png")
    words = ["generate", "a house", "--image", "x.png", "--mask", "grey.png", "--mask-blur", "0", *FEW]
    assert main([*words, "--unrounded-mask", "--out", "soft.png"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["recipe"]["unrounded_mask"] is True
    assert main([*words, "--out", "hard.png"]) == 0
    assert not np.array_equal(pixels("soft.png"), pixels("hard.png"))


def test_a_picture_is_edited_by_a_pix2pix_model_and_made_again_from_its_recipe(pix2pix, capsys):
    velatura.save(pix2pix, "edit/")
    words = ["generate", "make it night", "--base", "edit", "--image", "x.png", "--image-guidance", "1.2", *FEW]
    assert main([*words, "--out", "made.png"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["recipe"]["image_guidance"] == 1.2
    words = ["generate", "--recipe", "made.png", "--base", "edit", "--image", "x.png", "--out", "again.png"]
    assert main(words) == 0
    assert np.array_equal(pixels("made.png"), pixels("again.png"))


def test_a_pix2pix_model_without_an_image_is_refused_in_one_line(pix2pix, capsys):
    velatura.save(pix2pix, "edit.safetensors")
    assert main(["generate", "make it night", "--base", "edit.safetensors"]) == USER_ERROR_STATUS
    printed = capsys.readouterr().err
    assert "edit is a pix2pix model, which edits an image" in printed


@pytest.mark.parametrize("kind", ["inpainting", "pix2pix"])
def test_show_names_the_kind_of_model(request, kind, capsys):
    velatura.save(request.getfixturevalue(kind), "one.safetensors")
    velatura.save(request.getfixturevalue(kind), "folder/")
    for name in ("one.safetensors", "folder"):
        assert main(["show", name]) == 0
        assert kind in capsys.readouterr().out


def test_a_grid_varies_the_image_guidance(pix2pix, capsys):
    velatura.save(pix2pix, "edit.safetensors")
    words = ["grid", "make it night", "--base", "edit.safetensors", "--image", "x.png", *FEW]
    assert main([*words, "--x", "image_guidance=1,1.5", "--out", "grid.png"]) == 0
    with Image.open("grid.png") as image:
        assert image.width >= 2 * 64
