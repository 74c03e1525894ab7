"""The arithmetic of cutting: boxes (left, top, right, bottom) in pictures of a given size, no picture needed."""

from collections.abc import Iterable, Sequence
from math import ceil

Size = tuple[int, int]  # width, height
Box = tuple[float, float, float, float]


def split_boxes(size: Size, target: Size, overlap: float = 0.2) -> tuple[Size, list[tuple[int, int, int, int]]]:
    """The size to bring a long picture to, and the boxes of the target's size in it that cover it, overlapping.

    The side that decides is the picture's shorter one; neighbours share at least that part of the target's length. As
    the webui's "split oversized images" does.
    """
    (width, height), (wide, high) = size, target
    if height > width:
        resized = wide, max(high, height * wide // width)
        starts = _starts(resized[1], high, overlap)
        return resized, [(0, start, wide, start + high) for start in starts]
    resized = max(wide, width * high // height), high
    return resized, [(start, 0, start + wide, high) for start in _starts(resized[0], wide, overlap)]


def longness(size: Size, target: Size) -> float:
    """How much of a picture the target's shape would keep: 1 all of it, 0.5 half; above 1 where it is the less long."""
    (width, height), (wide, high) = size, target
    if height > width:
        return width * high / (height * wide)
    return height * wide / (width * high)


def sizes_between(least: int, most: int, areas: tuple[int, int], step: int = 64) -> list[Size]:
    """All sizes with sides of whole steps between two lengths, and an area between two."""
    sides = range(least, most + 1, step)
    return [(wide, high) for wide in sides for high in sides if areas[0] <= wide * high <= areas[1]]


def bucket_sizes(pixels: int) -> list[Size]:
    """The sizes of about pixels squared that pictures are sorted into: sides of half to twice as much, never more area.

    Steps are 64, as trainers have them, less where pixels are few.
    """
    step = max(8, min(64, pixels // 8))
    sizes = sizes_between(max(step, pixels // 2 // step * step), 2 * pixels, (1, pixels * pixels), step)
    largest = {wide: max(high for width, high in sizes if width == wide) for wide, _ in sizes}
    tallest = {high: max(wide for wide, height in sizes if height == high) for _, high in sizes}
    return sorted((wide, high) for wide, high in sizes if largest[wide] == high and tallest[high] == wide)


def nearest_size(size: Size, choices: Iterable[Size], most_lost: float = 1.0, *, by_area: bool = False) -> Size | None:
    """Of the sizes that cut off no more than that share of a picture, the one of the nearest shape, else the largest.

    by_area: the largest, else the one of the nearest shape. None where all cut off more.
    """
    fitting = [each for each in choices if _lost(size, each) <= most_lost]
    if by_area:
        return max(fitting, key=lambda each: (each[0] * each[1], -_lost(size, each)), default=None)
    return min(fitting, key=lambda each: (_lost(size, each), -each[0] * each[1]), default=None)


def largest_box(size: Size, target: Size, focus: tuple[float, float] = (0.5, 0.5)) -> Box:
    """The largest box of the target's shape in a picture; focus, in shares of it, is as near its middle as may be."""
    (width, height), (wide, high) = size, target
    scale = min(width / wide, height / high)
    across, down = wide * scale, high * scale
    left = min(max(focus[0] * width - across / 2, 0), width - across)
    top = min(max(focus[1] * height - down / 2, 0), height - down)
    return left, top, left + across, top + down


def _lost(size: Size, target: Size) -> float:
    """The share of a picture that is cut off to get the target's shape."""
    ratio = size[0] / size[1] / (target[0] / target[1])
    return 1 - min(ratio, 1 / ratio)


def _starts(length: int, piece: int, overlap: float) -> Sequence[int]:
    count = ceil((length - piece * overlap) / (piece * (1 - overlap)))
    return [0] if count < 2 else [int((length - piece) / (count - 1) * place) for place in range(count)]
