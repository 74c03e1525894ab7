"""A small folder of drawn pictures, as most tests of training need one."""

import shutil

import pytest
from PIL import Image, ImageDraw


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "photos"
    folder.mkdir()
    for number, color in enumerate(("red", "green", "blue")):
        image = Image.new("RGB", (80, 64), "white")
        ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill=color)
        image.save(folder / f"{number} a {color} ball.png")
    return folder


@pytest.fixture
def photos(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "photos")
