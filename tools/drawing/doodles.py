"""Pictures of nothing in particular, so that the autoencoder knows lines, dots, grids and textures of every colour."""

from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .styles import SUPERSAMPLES


def doodle(seed: int, pixels: int = 64) -> Image.Image:
    """A random ground, a random pattern over part of it and random marks on top."""
    rng = Random(seed)
    size = pixels * SUPERSAMPLES
    image = _ground(rng, size)
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.6:
        _pattern(draw, rng, size)
    for _ in range(rng.randrange(3, 16)):
        _mark(draw, rng, size)
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2) * SUPERSAMPLES))
    small = image.resize((pixels, pixels), Image.Resampling.BOX)
    if rng.random() < 0.3:
        grain = np.random.default_rng(seed).normal(0, rng.uniform(2, 18), (pixels, pixels, 1))
        small = Image.fromarray(np.clip(np.asarray(small) + grain, 0, 255).astype(np.uint8))
    return small


def _colour(rng: Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _ground(rng: Random, size: int) -> Image.Image:
    if rng.random() < 0.5:
        return Image.new("RGB", (size, size), _colour(rng))
    cells = rng.choice((2, 3, 5, 9, 16))
    lattice = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    smooth = rng.choice((Image.Resampling.BICUBIC, Image.Resampling.NEAREST))
    return Image.fromarray(lattice).resize((size, size), smooth)


def _pattern(draw: ImageDraw.ImageDraw, rng: Random, size: int) -> None:
    pitch = rng.uniform(3.2, 11) * SUPERSAMPLES
    thick = max(2, round(pitch * rng.uniform(0.1, 0.45)))
    kind, colour, slant = rng.choice(("grid", "dots", "stripes")), _colour(rng), rng.uniform(-1, 1) * size
    steps = int(size / pitch) + 2
    for i in range(-steps if kind == "stripes" else 0, steps):
        at = i * pitch
        if kind == "stripes":
            draw.line([(at, 0), (at + slant, size)], fill=colour, width=thick)
        elif kind == "grid":
            draw.line([(at, 0), (at, size)], fill=colour, width=thick)
            draw.line([(0, at), (size, at)], fill=colour, width=thick)
        else:
            for j in range(steps):
                y = j * pitch
                draw.ellipse([at - thick, y - thick, at + thick, y + thick], fill=colour)


def _mark(draw: ImageDraw.ImageDraw, rng: Random, size: int) -> None:
    corners = [(rng.uniform(0, size), rng.uniform(0, size)) for _ in range(rng.randrange(2, 6))]
    width = round(rng.uniform(0.6, 4) * SUPERSAMPLES)
    kind = rng.randrange(4)
    if kind == 0 and len(corners) > 2:
        draw.polygon(corners, fill=_colour(rng))
    elif kind == 1:
        (x, y), radius = corners[0], rng.uniform(0.03, 0.25) * size
        draw.ellipse(
            [x - radius, y - radius, x + radius, y + radius], fill=_colour(rng), outline=_colour(rng), width=width
        )
    else:
        draw.line(corners, fill=_colour(rng), width=width, joint="curve")
