"""Styles drawn at random: what a learned start and a predictor learn from, so that no style of a test is among them.

A style is a palette, fills, outlines, light, a texture and softness, all drawn from one seed. What makes the held-out
styles is left out: glow, a grid, brush strokes, dots and tiles.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from tools.drawing.paint import _placed_subjects
from tools.drawing.parts import Colour, Part
from tools.drawing.places import PLACES, TIMES
from tools.drawing.scene import COLOURS, Scene
from tools.drawing.styles import SUPERSAMPLES, Pixels, Sheet, _down, _fill, _from_array, _mixed, _noise, _outline, _own

Texture = Literal["none", "grain", "blotches", "stripes"]
LEGIBLE_CONTRAST = 40  # of 255, the mean over the pixels that a subject changes most, a tenth of the picture
_TRIAL_SCENES = (
    Scene("star", "red", "beach", "day", "poster", seed=1),
    Scene("bell", "yellow", "forest", "night", "poster", seed=2),
)


@dataclass(frozen=True)
class RandomStyle:
    """All that tells one random style from another.

    Attributes:
        paper: What the picture is painted on.
        background_share, subject_share: How much of its own colour a part keeps on the paper, 0 to 1.
        background_line, subject_line: Widths of outlines in pixels; 0 for none.
        line_colour: Colour of outlines; None for the part's own.
        duotone: Two colours to which brightness is mapped, and how much of that is mixed in, 0 to 1.
        saturation, contrast, brightness: 1, 1 and 0 change nothing.
        light: Strength and direction (radians) of light that falls off across the picture.
        texture: Its kind, strength, size in pixels, and direction (radians).
        softness: Radius of the blur in pixels.
        border: Width of the unpainted border, in pictures.
    """

    paper: Colour
    background_share: float
    subject_share: float
    background_line: float
    subject_line: float
    line_colour: Colour | None
    duotone: tuple[Colour, Colour, float]
    saturation: float
    contrast: float
    brightness: float
    light: tuple[float, float]
    texture: tuple[Texture, float, float, float]
    softness: float
    border: float

    def paint(self, scene: Scene, pixels: int = 64) -> Image.Image:
        """Return the scene in this style as an RGB picture of pixels x pixels; the scene's own style is not used."""
        rng = Random(scene.seed)
        background = PLACES[scene.place](TIMES[scene.time], rng)
        sheet = Sheet(background, _placed_subjects(scene, rng), COLOURS[scene.colour], pixels)
        image = Image.new("RGB", (sheet.size, sheet.size), self.paper)
        _fill(image, sheet.background, lambda part: _mixed(self.paper, _own(part), self.background_share))
        if self.background_line:
            _outline(image, sheet.background[1:], self._line, self.background_line)
        if self.subject_line:
            _outline(image, sheet.subject, self._line, self.subject_line * 1.5)
        _fill(image, sheet.subject, lambda part: _mixed(self.paper, _own(part), self.subject_share))
        if self.subject_line:
            _outline(image, sheet.subject, self._line, self.subject_line * 0.6)
        if self.softness:
            image = image.filter(ImageFilter.GaussianBlur(SUPERSAMPLES * self.softness))
        return _from_array(self._colour(np.asarray(_down(image, pixels), dtype=np.float32), rng))

    @property
    def is_legible(self) -> bool:
        """Return True if a subject stands out from two places in this style."""
        return all(_subject_contrast(self, scene) > LEGIBLE_CONTRAST for scene in _TRIAL_SCENES)

    def _line(self, part: Part) -> Colour:
        return _own(part) if self.line_colour is None else self.line_colour

    def _colour(self, image: Pixels, rng: Random) -> Pixels:
        """Map the colours, and lay light, texture and border over it."""
        size = len(image)
        grey = image.mean(axis=2, keepdims=True)
        dark, bright, share = self.duotone
        two = (
            np.asarray(dark, np.float32) + (np.asarray(bright, np.float32) - np.asarray(dark, np.float32)) * grey / 255
        )
        image = grey + (image - grey) * self.saturation
        image = image * (1 - share) + two * share
        image = (image - 128) * self.contrast + 128 + self.brightness * 255
        x, y = np.meshgrid(*[np.linspace(-1, 1, size, dtype=np.float32)] * 2)
        strength, angle = self.light
        shade = 1 - strength * (0.5 + 0.35 * (math.cos(angle) * x + math.sin(angle) * y))
        image = image * (shade * self._texture(x, y, rng))[..., None]
        if self.border:
            ragged = 1 - np.maximum(abs(x), abs(y)) + 0.1 * (_noise(rng, size, 9) - 0.5)
            cover = np.clip((ragged - self.border) * 9, 0, 1)[..., None]
            image = image * cover + np.asarray(self.paper, np.float32) * (1 - cover)
        return image

    def _texture(self, x: Pixels, y: Pixels, rng: Random) -> Pixels:
        """Return what brightness is multiplied by."""
        kind, strength, pitch, angle = self.texture
        size = len(x)
        if kind == "grain":
            return 1 + strength * 2 * (_noise(rng, size, round(64 / min(pitch, 2))) - 0.5)
        if kind == "blotches":
            return 1 + strength * 2 * (_noise(rng, size, round(64 / (3 * pitch))) - 0.5)
        if kind == "stripes":
            along = (math.cos(angle) * x + math.sin(angle) * y) * 32 / pitch
            return 1 + strength * np.sin(2 * np.pi * along).astype(np.float32)
        return np.ones_like(x)


def random_style(seed: int) -> RandomStyle:
    """Return the style of a seed, a legible one."""
    rng = Random(f"random style {seed}")
    while not (style := _draw_style(rng)).is_legible:
        pass
    return style


def _subject_contrast(style: RandomStyle, scene: Scene) -> float:
    """Return how much a subject changes the tenth of the pixels that it changes most."""
    pictures = [np.asarray(style.paint(each), np.float32) for each in (scene, replace(scene, size=1e-6))]
    changes = np.sort(abs(pictures[0] - pictures[1]).max(axis=2).ravel())
    return float(changes[-len(changes) // 10 :].mean())


def _draw_style(rng: Random) -> RandomStyle:
    return RandomStyle(
        paper=_random_colour(rng),
        background_share=rng.choice((1.0, rng.uniform(0.3, 1), rng.uniform(0.0, 0.5))),
        subject_share=rng.choice((1.0, rng.uniform(0.3, 1), rng.uniform(0.0, 0.4))),
        background_line=_some(rng, 0.5, 0.4, 1.1),
        subject_line=rng.uniform(0.7, 2.2) if rng.random() < 0.7 else 0.0,
        line_colour=_random_colour(rng) if rng.random() < 0.65 else None,
        duotone=(_random_colour(rng), _random_colour(rng), _some(rng, 0.4, 0.3, 1)),
        saturation=rng.choice((1.0, rng.uniform(0, 1), rng.uniform(1, 1.8))),
        contrast=rng.choice((1.0, 1.0, rng.uniform(0.6, 1.4), -rng.uniform(0.6, 1))),
        brightness=rng.uniform(-0.12, 0.12),
        light=(_some(rng, 0.3, 0.2, 0.7), rng.uniform(0, 6.28)),
        texture=(
            rng.choice(("none", "grain", "blotches", "stripes")),
            rng.uniform(0.05, 0.3),
            rng.uniform(1.5, 6),
            rng.uniform(0, 3.14),
        ),
        softness=_some(rng, 0.4, 0.2, 0.8),
        border=_some(rng, 0.15, 0.03, 0.15),
    )


def _some(rng: Random, chance: float, low: float, high: float) -> float:
    """Draw a number with this chance, and 0 otherwise; the same draws are taken either way."""
    value = rng.uniform(low, high)
    return value if rng.random() < chance else 0.0


def _random_colour(rng: Random) -> Colour:
    """Draw a colour: dark, bright or anything."""
    hue, saturation = rng.random(), rng.random()
    value = rng.choice((rng.uniform(0.02, 0.25), rng.uniform(0.85, 1), rng.random()))
    r, g, b = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return r, g, b
