"""A small folder of drawn pictures, as most tests of training need one."""

import pytest
from PIL import Image, ImageDraw


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, color in enumerate(("red", "green", "blue")):
        image = Image.new("RGB", (80, 64), "white")
        ImageDraw.Draw(image).ellipse((20, 10, 60, 50), fill=color)
        image.save(folder / f"{number} a {color} ball.png")
    return folder
