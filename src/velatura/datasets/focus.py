"""Where in a picture the eye goes: what stands out, or faces where OpenCV is there to find them."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from velatura.datasets.boxes import Box, Size
from velatura.errors import BadDataset

Map = NDArray[np.float64]
Focus = Callable[[Image.Image], Map]


class Detector(Protocol):
    """What is used of an OpenCV cascade."""

    def detectMultiScale(  # noqa: N802
        self, image: NDArray[np.uint8], scale: float, neighbours: int, flags: int, least: Size, /
    ) -> list[tuple[int, int, int, int]]:
        """Find boxes (left, top, width, height)."""
        ...


SIDE = 64  # of the picture in which the spectrum is looked at (Hou and Zhang 2007)
CENTRE_PULL = 0.2  # of the saliency of a picture; so that where nothing stands out the middle is kept
PLACES = 65  # tried along each side
FACES = "haarcascade_frontalface_default.xml"
LEAST_FACE = 0.05  # of the picture's shorter side


def what_stands_out(image: Image.Image) -> Map:
    """A map (height, width) of sum 1: what differs from the rest in frequencies and in colour, a little in the middle.

    The spectral residual of Hou and Zhang (2007), and the distance from the mean colour (Achanta et al. 2009).
    """
    small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(small.convert("LAB"), dtype=np.float64)
    residual = _spectral_residual(values[..., 0])
    distance = np.square(values - values.mean((0, 1))).sum(-1)
    return (1 - CENTRE_PULL) * (_of_sum_1(residual) + _of_sum_1(distance)) / 2 + CENTRE_PULL * _middle()


def faces(image: Image.Image) -> Map:
    """A map of the faces found, each counting as its area; where none is found, what stands out.

    Raises BadDataset without OpenCV, or with one that has no face detector of its own (5 has none).
    """
    found = _face_boxes(image.convert("L"))
    if not found:
        return what_stands_out(image)
    seen = np.zeros((SIDE, SIDE))
    for left, top, right, bottom in found:
        rows = slice(int(top * SIDE), max(int(top * SIDE) + 1, round(bottom * SIDE)))
        seen[rows, int(left * SIDE) : max(int(left * SIDE) + 1, round(right * SIDE))] += 1
    return (1 - CENTRE_PULL) * _of_sum_1(seen) + CENTRE_PULL * _middle()


def middle(image: Image.Image) -> Map:  # noqa: ARG001
    """A map that knows only the middle."""
    return _middle()


FOCUSES: dict[str, Focus] = {"middle": middle, "salient": what_stands_out, "faces": faces}


def best_box(size: Size, target: Size, seen: Map) -> Box:
    """The largest box of the target's shape with most of the map in it, the one nearest the middle of equal ones."""
    (width, height), (wide, high) = size, target
    scale = min(width / wide, height / high)
    across, down = wide * scale, high * scale
    summed = np.pad(seen.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes = [
        (left, top, left + across, top + down)
        for left in np.linspace(0, width - across, PLACES if across < width else 1).tolist()
        for top in np.linspace(0, height - down, PLACES if down < height else 1).tolist()
    ]

    def worth(box: Box) -> tuple[float, float]:
        aside = abs(box[0] + box[2] - width) + abs(box[1] + box[3] - height)
        return round(_inside(summed, box, size), 6), -aside

    return max(boxes, key=worth)


def _inside(summed: Map, box: Box, size: Size) -> float:
    """The share of a map in a box, from its sums over all above and left, between whose places it is interpolated."""
    columns = np.clip(np.array([box[0], box[2]]) / size[0] * SIDE, 0, SIDE)
    rows = np.clip(np.array([box[1], box[3]]) / size[1] * SIDE, 0, SIDE)
    corners = np.array([[_between(summed, row, column) for column in columns.tolist()] for row in rows.tolist()])
    return float(corners[1, 1] - corners[0, 1] - corners[1, 0] + corners[0, 0])


def _between(summed: Map, row: float, column: float) -> float:
    above, left = min(int(row), SIDE - 1), min(int(column), SIDE - 1)
    down, right = row - above, column - left
    corner = summed[above : above + 2, left : left + 2]
    return float(np.array([1 - down, down]) @ corner @ np.array([1 - right, right]))


def _spectral_residual(grey: Map) -> Map:
    spectrum = np.fft.fft2(grey)
    amplitude = np.log(np.abs(spectrum) + 1e-9)
    residual = amplitude - _box_blurred(amplitude, 3)
    seen = np.square(np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))))
    return _box_blurred(_box_blurred(seen, 5), 5)


def _box_blurred(values: Map, length: int) -> Map:
    """The mean around each place, the picture going on at its other side."""
    shifts = range(-(length // 2), length // 2 + 1)
    rows = np.mean([np.roll(values, shift, 0) for shift in shifts], axis=0)
    return np.mean([np.roll(rows, shift, 1) for shift in shifts], axis=0)


def _of_sum_1(values: Map) -> Map:
    total = values.sum()
    return values / total if total > 0 else np.full_like(values, 1 / values.size)


def _middle() -> Map:
    away = np.linspace(-1, 1, SIDE)
    return _of_sum_1(np.exp(-2 * (away[:, None] ** 2 + away**2)))


def _face_boxes(grey: Image.Image) -> list[Box]:
    """The faces in a picture, in shares of its width and height."""
    detector = _detector()
    least = max(16, round(min(grey.size) * LEAST_FACE))
    boxes = detector.detectMultiScale(np.asarray(grey), 1.1, 6, 0, (least, least))
    width, height = grey.size
    return [(x / width, y / height, (x + across) / width, (y + down) / height) for x, y, across, down in boxes]


def _detector() -> Detector:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        raise BadDataset(f"faces are found by OpenCV, which is not installed: {_HOW}") from None
    if not hasattr(cv2, "CascadeClassifier"):
        raise BadDataset(f"OpenCV {cv2.__version__} has no face detector of its own: {_HOW}")
    return cast("Detector", cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / FACES)))


_HOW = 'pip install "opencv-python-headless<5", or choose another focus'
