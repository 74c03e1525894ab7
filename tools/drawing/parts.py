"""What every drawing is made of: filled polygons and strokes in unit coordinates, in roles that a style colours.

Subjects live in the square -1..1 (x right, y down), places in 0..1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Point = tuple[float, float]
Colour = tuple[int, int, int]
Role = Literal["main", "dark", "light", "ink", "paper"]


@dataclass(frozen=True)
class Part:
    """One polygon (`width` 0) or one stroke of that width, coloured by role or by a fixed colour."""

    points: tuple[Point, ...]
    colour: Role | Colour
    width: float = 0.0

    def moved(self, x: float, y: float, scale: float, turn: float = 0.0) -> "Part":
        """The same part scaled, turned (radians) and moved."""
        cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
        points = tuple((x + cos * px - sin * py, y + sin * px + cos * py) for px, py in self.points)
        return replace(self, points=points, width=self.width * scale)


def poly(colour: Role | Colour, *points: Point) -> Part:
    """A filled polygon."""
    return Part(points, colour)


def rect(colour: Role | Colour, left: float, top: float, right: float, bottom: float) -> Part:
    """A filled rectangle."""
    return Part(((left, top), (right, top), (right, bottom), (left, bottom)), colour)


def oval(
    colour: Role | Colour, x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360, turn: float = 0
) -> Part:
    """A filled ellipse, or the pie between two angles (degrees, clockwise from the right), turned about its centre."""
    whole = end - start >= 360
    steps = max(8, int((end - start) / 12))
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + (0 if whole else 1))]
    points = [(rx * math.cos(a), ry * math.sin(a)) for a in angles] + ([] if whole else [(0.0, 0.0)])
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return Part(tuple((x + cos * px - sin * py, y + sin * px + cos * py) for px, py in points), colour)


def line(colour: Role | Colour, width: float, *points: Point) -> Part:
    """A stroke through the points."""
    return Part(points, colour, width)


def arc(
    colour: Role | Colour, width: float, x: float, y: float, rx: float, ry: float, start: float, end: float
) -> Part:
    """A stroke along an ellipse between two angles (degrees, clockwise from the right)."""
    steps = max(6, int((end - start) / 12))
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return Part(tuple((x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles), colour, width)


def star_points(x: float, y: float, outer: float, inner: float, tips: int) -> Sequence[Point]:
    """The corners of a star, the first tip up."""
    corners: list[Point] = []
    for i in range(2 * tips):
        radius = outer if i % 2 == 0 else inner
        angle = math.pi * i / tips - math.pi / 2
        corners.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return corners
