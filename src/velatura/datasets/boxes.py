"""The arithmetic of cutting: boxes (left, top, right, bottom) in pictures of a given size, no picture needed."""

from collections.abc import Iterable, Sequence
from math import ceil

ImageSize = tuple[int, int]  # width, height
CropBox = tuple[float, float, float, float]


def split_boxes(
    size: ImageSize, target: ImageSize, overlap: float = 0.2
) -> tuple[ImageSize, list[tuple[int, int, int, int]]]:
    """The size to bring a long picture to, and the boxes of the target's size in it that cover it, overlapping.

    The side that decides is the picture's shorter one; neighbours share at least that part of the target's length. As
    the webui's "split oversized images" does.
    """
    (width, height), (target_width, target_height) = size, target
    if height > width:
        resized = target_width, max(target_height, height * target_width // width)
        starts = _piece_starts(resized[1], target_height, overlap)
        return resized, [(0, start, target_width, start + target_height) for start in starts]
    resized = max(target_width, width * target_height // height), target_height
    return resized, [
        (start, 0, start + target_width, target_height) for start in _piece_starts(resized[0], target_width, overlap)
    ]


def kept_ratio(size: ImageSize, target: ImageSize) -> float:
    """How much of a picture the target's shape would keep: 1 all of it, 0.5 half; above 1 where it is the less long."""
    (width, height), (target_width, target_height) = size, target
    if height > width:
        return width * target_height / (height * target_width)
    return height * target_width / (width * target_height)


def sizes_between(min_side: int, max_side: int, areas: tuple[int, int], step: int = 64) -> list[ImageSize]:
    """All sizes with sides of whole steps between two lengths, and an area between two."""
    sides = range(min_side, max_side + 1, step)
    return [(width, height) for width in sides for height in sides if areas[0] <= width * height <= areas[1]]


def bucket_sizes(pixels: int) -> list[ImageSize]:
    """The sizes of about pixels squared that pictures are sorted into: sides of half to twice as much, never more area.

    Steps are 64, as trainers have them, less where pixels are few.
    """
    step = max(8, min(64, pixels // 8))
    sizes = sizes_between(max(step, pixels // 2 // step * step), 2 * pixels, (1, pixels * pixels), step)
    tallest_by_width = {
        column_width: max(high for width, high in sizes if width == column_width) for column_width, _ in sizes
    }
    widest_by_height = {
        row_height: max(wide for wide, height in sizes if height == row_height) for _, row_height in sizes
    }
    return sorted(
        (wide, high) for wide, high in sizes if tallest_by_width[wide] == high and widest_by_height[high] == wide
    )


def nearest_size(
    size: ImageSize, choices: Iterable[ImageSize], max_cropped: float = 1.0, *, is_by_area: bool = False
) -> ImageSize | None:
    """Of the sizes that cut off no more than that share of a picture, the one of the nearest shape, else the largest.

    by_area: the largest, else the one of the nearest shape. None where all cut off more.
    """
    allowed = [choice for choice in choices if _cropped_share(size, choice) <= max_cropped]
    if is_by_area:
        return max(allowed, key=lambda choice: (choice[0] * choice[1], -_cropped_share(size, choice)), default=None)
    return min(allowed, key=lambda choice: (_cropped_share(size, choice), -choice[0] * choice[1]), default=None)


def largest_box(size: ImageSize, target: ImageSize, focus: tuple[float, float] = (0.5, 0.5)) -> CropBox:
    """The largest box of the target's shape in a picture; focus, in shares of it, is as near its middle as may be."""
    (width, height), (target_width, target_height) = size, target
    scale = min(width / target_width, height / target_height)
    crop_width, crop_height = target_width * scale, target_height * scale
    left = min(max(focus[0] * width - crop_width / 2, 0), width - crop_width)
    top = min(max(focus[1] * height - crop_height / 2, 0), height - crop_height)
    return left, top, left + crop_width, top + crop_height


def _cropped_share(size: ImageSize, target: ImageSize) -> float:
    """The share of a picture that is cut off to get the target's shape."""
    ratio = size[0] / size[1] / (target[0] / target[1])
    return 1 - min(ratio, 1 / ratio)


def _piece_starts(length: int, piece: int, overlap: float) -> Sequence[int]:
    count = ceil((length - piece * overlap) / (piece * (1 - overlap)))
    return [0] if count < 2 else [int((length - piece) / (count - 1) * index) for index in range(count)]
