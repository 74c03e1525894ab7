"""The ten places: each paints a whole background in 0..1, varied by a random generator and by the time of day."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from .parts import Colour, Part, arc, line, oval, poly, rect


@dataclass(frozen=True)
class Light:
    """A time of day: the sky's two colours, what the ground's colours are multiplied by, and the sun or moon."""

    sky: Colour
    low_sky: Colour
    tint: tuple[float, float, float]
    disc: Colour

    def on(self, colour: Colour) -> Colour:
        """A ground colour seen in this light."""
        r, g, b = (min(255, round(c * t)) for c, t in zip(colour, self.tint, strict=True))
        return r, g, b


TIMES = {
    "day": Light((120, 190, 240), (186, 224, 246), (1, 1, 1), (255, 240, 150)),
    "dusk": Light((236, 120, 88), (252, 190, 110), (0.86, 0.66, 0.62), (255, 236, 170)),
    "night": Light((26, 32, 84), (52, 60, 122), (0.42, 0.46, 0.66), (240, 240, 226)),
}


def _sky(light: Light, rng: Random, horizon: float) -> list[Part]:
    parts = [
        rect(light.sky, 0, 0, 1, horizon + 0.02),
        rect(light.low_sky, 0, horizon - 0.17, 1, horizon + 0.02),
        oval(
            light.disc,
            rng.choice((rng.uniform(0.08, 0.25), rng.uniform(0.75, 0.92))),
            rng.uniform(0.1, 0.2),
            0.075,
            0.075,
        ),
    ]
    if light is TIMES["night"]:
        parts += _stars(rng, 7, horizon - 0.2)
    return parts


def _stars(rng: Random, count: int, bottom: float) -> list[Part]:
    return [oval((250, 246, 220), rng.random(), rng.uniform(0.02, bottom), 0.012, 0.012) for _ in range(count)]


def _cloud(x: float, y: float, size: float, colour: Colour) -> list[Part]:
    return [
        oval(colour, x + dx * size, y + dy * size, r * size, r * size * 0.75)
        for dx, dy, r in ((-0.6, 0, 0.5), (0, -0.2, 0.6), (0.6, 0, 0.5))
    ]


def _ridge(colour: Colour, rng: Random, base: float, heights: Sequence[float]) -> Part:
    """A jagged skyline filled down to the bottom."""
    step = 1 / (len(heights) - 1)
    top = [(i * step + rng.uniform(-0.05, 0.05), base - h) for i, h in enumerate(heights)]
    return poly(colour, (-0.1, 1), (-0.1, top[0][1]), *top, (1.1, top[-1][1]), (1.1, 1))


def _beach(light: Light, rng: Random) -> list[Part]:
    horizon = 0.45
    sea, foam, sand = light.on((40, 130, 190)), light.on((225, 240, 245)), light.on((242, 218, 156))
    waves = [(x / 10, 0.66 + 0.02 * math.sin(x * 2.2 + rng.random())) for x in range(11)]
    return [
        *_sky(light, rng, horizon),
        rect(sea, 0, horizon, 1, 0.7),
        poly(sand, *waves, (1, 1), (0, 1)),
        line(foam, 0.025, *waves),
    ]


def _desert(light: Light, rng: Random) -> list[Part]:
    far, near, plant = light.on((226, 160, 92)), light.on((240, 188, 110)), light.on((70, 130, 70))
    x = rng.choice((rng.uniform(0.06, 0.16), rng.uniform(0.84, 0.94)))
    cactus = [line(plant, 0.05, (x, 0.4), (x, 0.66)), line(plant, 0.035, (x, 0.56), (x + 0.07, 0.56), (x + 0.07, 0.47))]
    dunes = [oval(far, rng.uniform(0.1, 0.4), 0.62, 0.42, 0.13), oval(far, rng.uniform(0.6, 0.9), 0.62, 0.4, 0.1)]
    return [
        *_sky(light, rng, 0.62),
        *dunes,
        rect(near, 0, 0.6, 1, 1),
        *cactus,
        arc(far, 0.02, 0.5, 0.95, 0.4, 0.1, 190, 330),
    ]


def _snow(light: Light, rng: Random) -> list[Part]:
    hill, ground, pine = light.on((214, 226, 240)), light.on((246, 250, 254)), light.on((60, 110, 100))
    flakes = [oval((255, 255, 255), rng.random(), rng.random(), 0.014, 0.014) for _ in range(12)]
    pines: list[Part] = []
    for x in (rng.uniform(0.03, 0.12), rng.uniform(0.2, 0.3), rng.uniform(0.82, 0.95)):
        pines.append(poly(pine, (x, 0.38), (x - 0.06, 0.6), (x + 0.06, 0.6)))
    return [
        *_sky(light, rng, 0.62),
        oval(hill, rng.uniform(0.2, 0.8), 0.66, 0.6, 0.16),
        *pines,
        rect(ground, 0, 0.6, 1, 1),
        *flakes,
    ]


def _forest(light: Light, rng: Random) -> list[Part]:
    back, leaf, trunk, moss = (light.on(c) for c in ((52, 108, 70), (30, 82, 48), (84, 58, 38), (74, 112, 56)))
    parts = [rect(light.sky, 0, 0, 1, 0.5), rect(back, 0, 0.2, 1, 0.8)]
    for i in range(5):
        x = 0.02 + i * 0.24 + rng.uniform(-0.04, 0.04)
        parts += [rect(trunk, x - 0.025, 0.25, x + 0.025, 0.76), oval(leaf, x, rng.uniform(0.14, 0.24), 0.16, 0.2)]
    return [*parts, rect(moss, 0, 0.74, 1, 1)]


def _meadow(light: Light, rng: Random) -> list[Part]:
    hill, grass = light.on((132, 198, 92)), light.on((104, 178, 72))
    colours = [(250, 250, 250), (250, 220, 90), (240, 140, 180)]
    blooms = [
        oval(light.on(rng.choice(colours)), rng.random(), rng.uniform(0.68, 0.97), 0.018, 0.018) for _ in range(12)
    ]
    return [
        *_sky(light, rng, 0.62),
        oval(hill, rng.uniform(0.2, 0.8), 0.66, 0.55, 0.16),
        rect(grass, 0, 0.6, 1, 1),
        *blooms,
    ]


def _mountains(light: Light, rng: Random) -> list[Part]:
    rock, cap, ground = light.on((116, 122, 146)), light.on((244, 246, 250)), light.on((96, 128, 92))
    parts = _sky(light, rng, 0.7)
    for x, top, half in (
        (rng.uniform(0.1, 0.25), 0.2, 0.36),
        (rng.uniform(0.72, 0.9), 0.16, 0.4),
        (rng.uniform(0.4, 0.6), 0.32, 0.3),
    ):
        slope = half / (0.76 - top)
        parts.append(poly(rock, (x, top), (x + half, 0.76), (x - half, 0.76)))
        parts.append(
            poly(cap, (x, top), (x + 0.13 * slope, top + 0.13), (x, top + 0.1), (x - 0.13 * slope, top + 0.13))
        )
    return [*parts, rect(ground, 0, 0.74, 1, 1)]


def _city(light: Light, rng: Random) -> list[Part]:
    walls = [light.on(c) for c in ((128, 134, 152), (150, 140, 140), (108, 118, 140))]
    window = (255, 226, 130) if light is not TIMES["day"] else (206, 226, 240)
    parts = _sky(light, rng, 0.7)
    for i in range(5):
        left, top = i * 0.2 + rng.uniform(-0.01, 0.02), rng.uniform(0.16, 0.4)
        parts.append(rect(walls[i % 3], left, top, left + 0.17, 0.8))
        for row in range(3):
            parts += [
                rect(window, left + dx, top + 0.05 + row * 0.12, left + dx + 0.035, top + 0.1 + row * 0.12)
                for dx in (0.035, 0.1)
            ]
    road, stripe = light.on((84, 86, 94)), light.on((236, 232, 214))
    return [*parts, rect(road, 0, 0.77, 1, 1), *(rect(stripe, x, 0.88, x + 0.14, 0.91) for x in (0.06, 0.44, 0.8))]


def _sea(light: Light, rng: Random) -> list[Part]:
    weed, sand = (36, 140, 110), (206, 192, 140)
    bands = [rect((30 + 12 * i, 140 - 22 * i, 196 - 20 * i), 0, i * 0.28, 1, i * 0.28 + 0.29) for i in range(4)]
    weeds: list[Part] = []
    for x in (rng.uniform(0.04, 0.12), rng.uniform(0.16, 0.24), rng.uniform(0.84, 0.95)):
        weeds.append(line(weed, 0.04, *((x + 0.025 * (-1) ** i, 0.9 - i * 0.09) for i in range(rng.choice((4, 5))))))
    bubbles = [
        arc((200, 236, 250), 0.012, rng.random(), rng.uniform(0.05, 0.7), 0.025, 0.025, 0, 360) for _ in range(6)
    ]
    return [*bands, oval(sand, 0.5, 1, 0.75, 0.14), *weeds, *bubbles]


def _space(light: Light, rng: Random) -> list[Part]:
    x, y = rng.choice(((0.16, 0.2), (0.84, 0.22), (0.14, 0.82), (0.86, 0.8)))
    planet = [oval((206, 140, 96), x, y, 0.11, 0.11), arc((240, 210, 160), 0.022, x, y, 0.18, 0.05, 0, 360)]
    haze = oval((44, 26, 74), rng.random(), rng.random(), 0.4, 0.22, turn=rng.uniform(0, 180))
    return [rect((18, 14, 38), 0, 0, 1, 1), haze, *_stars(rng, 26, 1.0), *planet]


def _room(light: Light, rng: Random) -> list[Part]:
    x = rng.choice((0.06, 0.66))
    wall, floor, frame = (232, 208, 180), (164, 112, 74), (250, 246, 236)
    window = [
        rect(frame, x, 0.1, x + 0.28, 0.42),
        rect((150, 204, 240), x + 0.03, 0.13, x + 0.25, 0.39),
        line(frame, 0.025, (x + 0.14, 0.12), (x + 0.14, 0.4)),
    ]
    boards = [line((136, 90, 58), 0.014, (0, y), (1, y)) for y in (0.8, 0.9)]
    rug = oval((176, 82, 92), 0.5, 0.9, 0.42, 0.08)
    return [rect(wall, 0, 0, 1, 0.72), *window, rect(floor, 0, 0.7, 1, 1), rect(frame, 0, 0.68, 1, 0.72), *boards, rug]


PLACES: dict[str, Callable[[Light, Random], list[Part]]] = {
    "beach": _beach,
    "desert": _desert,
    "snow": _snow,
    "forest": _forest,
    "meadow": _meadow,
    "mountains": _mountains,
    "city": _city,
    "sea": _sea,
    "space": _space,
    "room": _room,
}

# places that no time of day changes
TIMELESS = frozenset({"sea", "space", "room"})
