"""Very large photographs are read at a fraction of their size; Pillow's own warning and refusal never reach a user."""

import warnings
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

import velatura
from velatura import image_files
from velatura.cli.app import main
from velatura.datasets.crop import CropOptions, crop_folder
from velatura.datasets.pictures import read_picture, read_upright
from velatura.errors import BadDataset, VelaturaWarning
from velatura.image_files import open_image, shrink_image
from velatura.sampling.recipe import metadata

ORIENTATION = 0x0112
FORMATS = ["jpg", "png", "webp", "tif", "bmp"]


@pytest.fixture
def small_limits(monkeypatch):
    """The limits of real photographs, a thousandth of them, so that pictures are made at once."""
    monkeypatch.setattr(image_files, "LARGE_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(image_files, "MAX_IMAGE_PIXELS", 1_000_000)
    monkeypatch.setattr(image_files, "MAX_PIXELS_PER_BYTE", 10_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)


def halves(width, height, mode="RGB"):
    """A picture that is dark on the left and light on the right."""
    values = np.zeros((height, width), np.uint8)
    values[:, width // 2 :] = 200
    return Image.fromarray(values).convert(mode)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.usefixtures("small_limits")
def test_a_large_picture_of_any_format_is_shrunk_with_one_warning(tmp_path, ending):
    path = tmp_path / f"wide.{ending}"
    halves(600, 200).save(path)
    with pytest.warns(
        VelaturaWarning, match=rf"wide\.{ending} has 600 x 200 pixels and is read at \d+ x \d+"
    ) as caught:
        picture = read_upright(path)
    assert len(caught) == 1
    assert picture.width * picture.height <= 10_000
    assert picture.width / picture.height == pytest.approx(3, rel=0.05)
    left, right = picture.getpixel((5, 5))[0], picture.getpixel((picture.width - 5, 5))[0]
    assert (left, right) == (pytest.approx(0, abs=4), pytest.approx(200, abs=4))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "F", "I"])
@pytest.mark.usefixtures("small_limits")
def test_a_large_picture_of_any_mode_is_shrunk(tmp_path, mode):
    path = tmp_path / "large.tif" if mode not in {"P", "1", "LA", "RGBA"} else tmp_path / "large.png"
    picture = halves(300, 300, "L" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(halves(300, 300, "L"), np.uint16) * 257)
    picture.save(path)
    with pytest.warns(VelaturaWarning, match="has 300 x 300 pixels and is read at 100 x 100"):
        shrunk = read_upright(path)
    assert shrunk.getpixel((90, 40)) == pytest.approx((200,) * 3, abs=8)
    assert shrunk.getpixel((5, 40)) == pytest.approx((0, 0, 0), abs=8)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.usefixtures("small_limits")
def test_a_large_picture_is_turned_upright(tmp_path, ending):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the right side is the bottom
    halves(600, 200).save(tmp_path / f"a.{ending}", exif=exif)
    with pytest.warns(VelaturaWarning):
        picture = read_upright(tmp_path / f"a.{ending}")
    assert picture.height > picture.width
    assert picture.getpixel((10, 10))[0] < 50 < picture.getpixel((10, picture.height - 10))[0]


@pytest.mark.usefixtures("small_limits")
def test_a_picture_between_the_limits_of_pillow_and_ours_says_nothing(tmp_path):
    halves(90, 90).save(tmp_path / "a.png")  # 8,100 pixels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "a.png", 16).size == (16, 16)
        with open_image(BytesIO((tmp_path / "a.png").read_bytes())) as image:
            assert shrink_image(image) is image
    assert Image.MAX_IMAGE_PIXELS == 5_000


@pytest.mark.usefixtures("small_limits")
def test_a_picture_beyond_every_limit_is_refused_in_one_line(tmp_path):
    Image.new("L", (2000, 600)).save(tmp_path / "a.png")
    with pytest.raises(
        BadDataset, match=r"^a\.png has 2000 x 600 pixels, and more than \d+ million are not read: save it"
    ):
        read_upright(tmp_path / "a.png")


@pytest.mark.usefixtures("small_limits")
def test_many_large_pictures_of_a_folder_are_named_in_one_warning(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("left", "middle", "right"):
        halves(300, 300).save(tmp_path / "photos" / f"{name}.jpg")
    with pytest.warns(VelaturaWarning) as caught:
        crop_folder(tmp_path / "photos", tmp_path / "out", CropOptions(pixels=64))
    [message] = [str(warning.message) for warning in caught]
    assert message.startswith("left.jpg has 300 x 300 pixels")
    assert message.endswith("(and 2 more of this kind)")


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("small_limits")
def test_large_pictures_are_trained_on_and_painted_over(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    halves(300, 300).save(tmp_path / "photos" / "left and right.jpg")
    words = ["train", "hypernet", "photos", "--steps", "1", "--out", "run"]
    for command in (words, ["generate", "a", "--image", "photos/left and right.jpg", "--steps", "1", "--out", "a.png"]):
        assert main(command) == 0
        printed = capsys.readouterr().err
        assert "left and right.jpg has 300 x 300 pixels and is read at 75 x 75" in printed
        assert "DecompressionBomb" not in printed


@pytest.mark.usefixtures("small_limits")
def test_the_recipe_of_a_large_picture_is_read_without_a_warning(tmp_path):
    recipe = velatura.Recipe(prompt="a lighthouse", seed=7, width=64, height=64)
    info = PngInfo()
    info.add_text("parameters", recipe.infotext())
    halves(300, 300).save(tmp_path / "a.png", pnginfo=info)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert velatura.Recipe.from_image(tmp_path / "a.png").prompt == "a lighthouse"


@pytest.mark.parametrize("ending", [".png", ".jpg", ".eps"])
def test_no_other_program_is_started_for_a_picture(tmp_path, monkeypatch, ending):
    """Pillow starts Ghostscript to draw an EPS, whatever its name."""
    started = []
    monkeypatch.setattr("subprocess.Popen", lambda *command, **_: started.append(command))
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UnidentifiedImageError), open_image(path) as image:
        image.load()
    assert not started


def test_a_large_picture_of_next_to_no_bytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "LARGE_IMAGE_PIXELS", 10_000)
    Image.new("1", (600, 600)).save(tmp_path / "a.png")  # of about 110 bytes
    with pytest.raises(BadDataset, match=r"^a\.png has 600 x 600 pixels in \d+ bytes, so it is empty, or made to fill"):
        read_upright(tmp_path / "a.png")
    Image.effect_mandelbrot((200, 200), (-2, -1, 1, 1), 20).save(tmp_path / "b.png")
    with pytest.warns(VelaturaWarning, match="is read at"):
        read_upright(tmp_path / "b.png")


def test_the_recipe_of_a_bomb_is_read_without_its_pixels(tmp_path, monkeypatch):
    info = PngInfo()
    info.add_text("parameters", "a house\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x96")
    Image.new("L", (600, 600)).save(tmp_path / "a.png", pnginfo=info)
    monkeypatch.setattr(image_files, "LARGE_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr(metadata, "load_pixels", lambda _: pytest.fail("its pixels are read"))
    assert velatura.Recipe.from_image(tmp_path / "a.png").prompt == "a house"
