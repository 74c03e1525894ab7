"""How a scene's parts become pixels: four styles that the base learns, five that it never sees.

Everything is painted at four times the size and averaged down.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .parts import Colour, Part

SUPERSAMPLES = 4
Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Sheet:
    """What a style paints: background and subject in plain colours and picture coordinates 0..1."""

    background: Sequence[Part]
    subject: Sequence[Part]
    main: Colour
    pixels: int

    @property
    def size(self) -> int:
        """The side of the large canvas."""
        return self.pixels * SUPERSAMPLES


def _corners(part: Part, size: int) -> list[tuple[float, float]]:
    return [(x * size, y * size) for x, y in part.points]


def _fill(image: Image.Image, parts: Sequence[Part], colour_of: Callable[[Part], Colour]) -> None:
    draw = ImageDraw.Draw(image)
    for part in parts:
        if part.width:
            draw.line(
                _corners(part, image.width),
                fill=colour_of(part),
                width=max(1, round(part.width * image.width)),
                joint="curve",
            )
        else:
            draw.polygon(_corners(part, image.width), fill=colour_of(part))


def _outline(image: Image.Image, parts: Sequence[Part], colour_of: Callable[[Part], Colour], pixels: float) -> None:
    draw = ImageDraw.Draw(image)
    for part in parts:
        corners = _corners(part, image.width)
        closed = corners if part.width else [*corners, corners[0], corners[1]]
        draw.line(closed, fill=colour_of(part), width=round(pixels * SUPERSAMPLES), joint="curve")


def _own(part: Part) -> Colour:
    assert not isinstance(part.colour, str)
    return part.colour


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    r, g, b = (round(c * (1 - share) + o * share) for c, o in zip(colour, other, strict=True))
    return r, g, b


def _flat(sheet: Sheet) -> Image.Image:
    image = Image.new("RGB", (sheet.size, sheet.size))
    _fill(image, sheet.background, _own)
    # a thin rim keeps a dark subject apart from a dark place, and a white one from snow
    rim = (250, 250, 250) if sum(sheet.main) < 200 else (40, 40, 52)
    _outline(image, sheet.subject, lambda _: rim, 1.4)
    _fill(image, sheet.subject, _own)
    return image


def _down(image: Image.Image, pixels: int) -> Image.Image:
    return image.resize((pixels, pixels), Image.Resampling.BOX)


def _noise(rng: Random, size: int, cells: int) -> Pixels:
    """Smooth noise in 0..1: random values on a cells x cells lattice, enlarged."""
    lattice = np.random.default_rng(rng.getrandbits(32)).random((cells, cells), dtype=np.float32)
    grown = Image.fromarray((lattice * 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(grown, dtype=np.float32) / 255


def _from_array(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def poster(sheet: Sheet, rng: Random) -> Image.Image:
    """Flat colours."""
    return _down(_flat(sheet), sheet.pixels)


def ink(sheet: Sheet, rng: Random) -> Image.Image:
    """Flat colours under bold black outlines."""
    image = _flat(sheet)
    _outline(image, sheet.background[1:], lambda _: (20, 18, 22), 0.6)
    _fill(image, sheet.subject, _own)
    _outline(image, sheet.subject, lambda _: (20, 18, 22), 1.5)
    return _down(image, sheet.pixels)


def watercolor(sheet: Sheet, rng: Random) -> Image.Image:
    """Pale washes with soft edges on mottled paper, unpainted towards the border."""
    image = _flat(sheet).filter(ImageFilter.GaussianBlur(SUPERSAMPLES * 0.8))
    _fill(image, sheet.subject, _own)
    image = image.filter(ImageFilter.GaussianBlur(SUPERSAMPLES * 0.45))
    wash = 0.74 + 0.26 * _noise(rng, sheet.size, 7)
    at = np.linspace(-1, 1, sheet.size, dtype=np.float32)
    edge = np.clip(
        (1.0 - np.maximum(abs(at)[:, None], abs(at)[None, :]) + 0.12 * _noise(rng, sheet.size, 9)) * 9 - 0.6, 0, 1
    )
    cover = (wash * edge)[..., None]
    paper = np.asarray([250, 246, 236], dtype=np.float32)
    return _down(_from_array(np.asarray(image, dtype=np.float32) * cover + paper * (1 - cover)), sheet.pixels)


def chalk(sheet: Sheet, rng: Random) -> Image.Image:
    """Dusty strokes on a slate."""
    slate = (46, 56, 54)
    image = Image.new("RGB", (sheet.size, sheet.size), slate)
    _fill(image, sheet.background, lambda part: _mixed(_own(part), slate, 0.62))
    _outline(image, sheet.background[1:], lambda part: _mixed(_own(part), (255, 255, 255), 0.2), 0.7)
    _outline(image, sheet.subject, lambda _: (236, 236, 228), 1.8)
    _fill(image, sheet.subject, lambda part: _mixed(_own(part), slate, 0.1))
    grain = np.random.default_rng(rng.getrandbits(32)).random((sheet.pixels * 2, sheet.pixels * 2), dtype=np.float32)
    dust = (
        0.78
        + 0.3
        * np.asarray(Image.fromarray((grain * 255).astype(np.uint8)).resize(image.size), dtype=np.float32)[..., None]
        / 255
    )
    return _down(_from_array(np.asarray(image, dtype=np.float32) * dust), sheet.pixels)


def neon(sheet: Sheet, rng: Random) -> Image.Image:
    """Glowing tubes in the dark."""
    night = (12, 6, 26)
    tubes = Image.new("RGB", (sheet.size, sheet.size))
    _outline(tubes, sheet.background[1:], lambda part: _mixed(_vivid(_own(part)), night, 0.55), 0.9)
    _fill(tubes, sheet.subject, lambda _: (0, 0, 0))
    _outline(tubes, sheet.subject, lambda part: _vivid(_own(part)), 1.5)
    glow = tubes.filter(ImageFilter.GaussianBlur(SUPERSAMPLES * 2.4))
    lit = ImageChops.add(Image.new("RGB", tubes.size, night), ImageChops.add(glow, tubes))
    return _down(ImageChops.add(lit, glow), sheet.pixels)


def _vivid(colour: Colour) -> Colour:
    """The colour at full brightness and more saturated, as a tube would glow."""
    low, high = min(colour), max(*colour, 1)
    if high < 70:
        return (130, 110, 255)
    r, g, b = (round(255 * max(0.0, (c - 0.6 * low) / (high - 0.6 * low))) for c in colour)
    return r, g, b


def blueprint(sheet: Sheet, rng: Random) -> Image.Image:
    """White construction lines on blue paper with a faint grid."""
    blue, white = (28, 78, 158), (232, 240, 252)
    image = Image.new("RGB", (sheet.size, sheet.size), blue)
    draw = ImageDraw.Draw(image)
    for at in range(0, sheet.size, 8 * SUPERSAMPLES):
        draw.line([(at, 0), (at, sheet.size)], fill=(46, 96, 174), width=SUPERSAMPLES)
        draw.line([(0, at), (sheet.size, at)], fill=(46, 96, 174), width=SUPERSAMPLES)
    _outline(image, sheet.background[1:], lambda _: (120, 160, 214), 0.6)
    _fill(image, sheet.subject, lambda _: (36, 90, 172))
    _outline(image, sheet.subject, lambda _: white, 1.2)
    return _down(image, sheet.pixels)


def oil(sheet: Sheet, rng: Random) -> Image.Image:
    """Thick short strokes that follow a slow swirl."""
    source = _flat(sheet)
    colours = np.asarray(source.filter(ImageFilter.GaussianBlur(SUPERSAMPLES)), dtype=np.int32)
    swirl = _noise(rng, sheet.size, 5) * 2 * np.pi
    image, draws = source.copy(), np.random.default_rng(rng.getrandbits(32))
    draw = ImageDraw.Draw(image)
    for length, count in ((9, 420), (5, 700)):
        for x, y, jitter in zip(
            *draws.integers(0, sheet.size, (2, count)), draws.integers(-26, 27, count), strict=True
        ):
            dx, dy = np.cos(swirl[y, x]) * length * SUPERSAMPLES / 2, np.sin(swirl[y, x]) * length * SUPERSAMPLES / 2
            colour = tuple(int(c) for c in np.clip(colours[y, x] + jitter, 0, 255))
            draw.line([(x - dx, y - dy), (x + dx, y + dy)], fill=colour, width=2 * SUPERSAMPLES)
    return _down(image, sheet.pixels)


def halftone(sheet: Sheet, rng: Random) -> Image.Image:
    """Printer's dots, larger where it is darker, on cream paper."""
    cell = 4 * SUPERSAMPLES
    flat = _flat(sheet)
    cells = np.asarray(flat.resize((sheet.size // cell,) * 2, Image.Resampling.BOX), dtype=np.float32)
    image = Image.new("RGB", flat.size, (248, 240, 220))
    draw = ImageDraw.Draw(image)
    for row, column in np.ndindex(cells.shape[:2]):
        colour = cells[row, column]
        radius = cell * (0.43 + 0.2 * (1 - colour.mean() / 255))
        x, y = (column + 0.5) * cell, (row + 0.5) * cell
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=tuple(int(c) for c in colour))
    return _down(image, sheet.pixels)


def mosaic(sheet: Sheet, rng: Random) -> Image.Image:
    """Square tiles with dark joints."""
    cell = 4
    flat = _flat(sheet)
    tiles = flat.resize((sheet.pixels // cell,) * 2, Image.Resampling.BOX).resize(
        (sheet.pixels,) * 2, Image.Resampling.NEAREST
    )
    pixels = np.array(tiles, dtype=np.float32)
    pixels[::cell] *= 0.76
    pixels[:, ::cell] *= 0.76
    return _from_array(pixels)


STYLES: dict[str, Callable[[Sheet, Random], Image.Image]] = {
    "poster": poster,
    "ink": ink,
    "watercolor": watercolor,
    "chalk": chalk,
    "neon": neon,
    "blueprint": blueprint,
    "oil": oil,
    "halftone": halftone,
    "mosaic": mosaic,
}
