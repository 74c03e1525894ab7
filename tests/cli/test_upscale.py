"""`velatura upscale`: a picture in, a larger one out, with its recipe."""

from __future__ import annotations

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.upscaling.test_upscaling import save_nearest
from velatura.cli.app import main


@pytest.fixture
def picture(tmp_path):
    """A picture with a recipe inside."""
    chunks = PngInfo()
    chunks.add_text("parameters", "a cat\nSteps: 5, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 4x3")
    image = Image.new("RGB", (4, 3), "red")
    image.putpixel((1, 1), (0, 0, 255))
    image.save(tmp_path / "cat.png", pnginfo=chunks)
    return tmp_path / "cat.png"


@pytest.mark.parametrize("by_name", [True, False])
def test_a_picture_is_enlarged_and_keeps_its_recipe(tmp_path, picture, capsys, by_name):
    path = save_nearest(tmp_path / "models")
    upscaler = ["Nearest2x", "--library", str(tmp_path / "models")] if by_name else [str(path)]
    assert main(["upscale", str(picture), "--upscaler", *upscaler, "--out", str(tmp_path / "large.png")]) == 0
    with Image.open(tmp_path / "large.png") as large, Image.open(picture) as small:
        assert large.tobytes() == small.resize((8, 6), Image.Resampling.NEAREST).tobytes()
        assert large.info == small.info
    assert capsys.readouterr().out == f"{tmp_path / 'large.png'}\n"


def test_scale_and_lanczos(tmp_path, picture):
    out = tmp_path / "large.jpg"
    assert main(["upscale", str(picture), "--upscaler", "lanczos", "--scale", "2.5", "--out", str(out)]) == 0
    with Image.open(out) as large:
        assert large.size == (10, 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--upscaler", "4x-Ultra"], "no upscaler is called '4x-Ultra'"),
        (["--upscaler", "Latent"], "enlarges latents, not pictures"),
        (["--upscaler", "Lanczos", "--scale", "17"], "less than or equal to 16"),
        ([], "nothing is to be done: give --upscaler NAME, --restore-faces, or both"),
        (["--restore-faces", "--scale", "2"], "--scale needs an upscaler"),
        (["--upscaler", "Lanczos", "--face-restorer", "GFPGAN"], "changes nothing without --restore-faces"),
        (["--restore-faces"], "GFPGANv1.4.pth is not in the library: put it into models/"),
    ],
)
def test_mistakes_are_one_line(picture, capsys, words, message):
    folder = picture.parent
    words = ["upscale", str(picture), *words, "--library", str(folder), "--out", str(folder / "large.png")]
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_text_is_not_a_picture(tmp_path, capsys):
    (tmp_path / "notes.png").write_text("no picture")
    words = ["upscale", str(tmp_path / "notes.png"), "--upscaler", "Lanczos", "--out", str(tmp_path / "out.png")]
    assert main(words) == 2
    assert "cannot be read as a picture" in capsys.readouterr().err
