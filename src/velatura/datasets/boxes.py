"""Arithmetic of crops: boxes (left, top, right, bottom) and sizes (width, height), without any picture."""

from collections.abc import Iterable, Sequence
from math import ceil

ImageSize = tuple[int, int]  # width, height
CropBox = tuple[float, float, float, float]


def split_boxes(
    size: ImageSize, target: ImageSize, overlap: float = 0.2
) -> tuple[ImageSize, list[tuple[int, int, int, int]]]:
    """Split a long picture into overlapping boxes of the target size, as the web UI's "split oversized images" does.

    Args:
        size: Size of the picture.
        target: Size of every box.
        overlap: Least overlap of neighbouring boxes, as a share of the target's side.

    Returns:
        Size to resize the picture to, so that its shorter side fits the target, and boxes in the resized picture.
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


def crop_coverage(size: ImageSize, target: ImageSize) -> float:
    """Return the share of a picture that a crop of the target's shape covers, as the web UI computes it.

    The result is above 1 if the target is the longer of the two shapes.
    """
    (width, height), (target_width, target_height) = size, target
    if height > width:
        return width * target_height / (height * target_width)
    return height * target_width / (width * target_height)


def sizes_between(min_side: int, max_side: int, areas: tuple[int, int], step: int = 64) -> list[ImageSize]:
    """Return all sizes with sides from `min_side` to `max_side` and an area within `areas`.

    Args:
        min_side, max_side: In pixels, both inclusive.
        areas: Smallest and largest area in pixels, both inclusive.
        step: Difference between neighbouring sides in pixels.
    """
    sides = range(min_side, max_side + 1, step)
    return [(width, height) for width in sides for height in sides if areas[0] <= width * height <= areas[1]]


def bucket_sizes(pixels: int) -> list[ImageSize]:
    """Return the sizes of aspect ratio buckets, sorted: the largest with sides from half of `pixels` to twice as much.

    No bucket has a larger area than `pixels` squared. Sides are multiples of 64, as in other trainers, or of an eighth
    of `pixels` if that is less, and at least of 8.
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
    """Return the size with the nearest aspect ratio, the largest of equal ones; None if all crop too much.

    Args:
        size: Size of the picture.
        choices: Sizes to choose from.
        max_cropped: Largest share of the picture that may be cropped off.
        is_by_area: Return the largest size instead, with the nearest aspect ratio of equal ones.
    """
    allowed = [choice for choice in choices if _cropped_share(size, choice) <= max_cropped]
    if is_by_area:
        return max(allowed, key=lambda choice: (choice[0] * choice[1], -_cropped_share(size, choice)), default=None)
    return min(allowed, key=lambda choice: (_cropped_share(size, choice), -choice[0] * choice[1]), default=None)


def largest_box(size: ImageSize, target: ImageSize, focus: tuple[float, float] = (0.5, 0.5)) -> CropBox:
    """Return the largest box of the target's aspect ratio whose middle is as near as possible to the focus.

    Args:
        size: Size of the picture.
        target: Size with the aspect ratio of the box.
        focus: (x, y) as shares of the picture's width and height.
    """
    (width, height), (target_width, target_height) = size, target
    scale = min(width / target_width, height / target_height)
    crop_width, crop_height = target_width * scale, target_height * scale
    left = min(max(focus[0] * width - crop_width / 2, 0), width - crop_width)
    top = min(max(focus[1] * height - crop_height / 2, 0), height - crop_height)
    return left, top, left + crop_width, top + crop_height


def _cropped_share(size: ImageSize, target: ImageSize) -> float:
    """Return the share of a picture that a crop to the target's aspect ratio removes."""
    ratio = size[0] / size[1] / (target[0] / target[1])
    return 1 - min(ratio, 1 / ratio)


def _piece_starts(length: int, piece: int, overlap: float) -> Sequence[int]:
    count = ceil((length - piece * overlap) / (piece * (1 - overlap)))
    return [0] if count < 2 else [int((length - piece) / (count - 1) * index) for index in range(count)]
