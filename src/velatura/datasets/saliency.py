"""Maps of what is important in a picture: what stands out, faces (needs OpenCV), or the middle."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from velatura.datasets.boxes import CropBox, ImageSize
from velatura.errors import BadDataset

SaliencyMap = NDArray[np.float64]
FocusFunction = Callable[[Image.Image], SaliencyMap]


MAP_SIDE = 64  # of the reduced picture whose spectrum is computed (Hou and Zhang 2007)
CENTRE_BIAS = 0.2  # weight of the middle in a map, so that a crop keeps the middle if nothing stands out
POSITIONS_PER_SIDE = 65  # of a crop, along either side
FACE_CASCADE = "haarcascade_frontalface_default.xml"
MIN_FACE_SHARE = 0.05  # of the picture's shorter side
_OPENCV_ADVICE = 'pip install "opencv-python-headless<5", or choose another focus'


class FaceDetector(Protocol):
    """Part of an OpenCV cascade classifier that is used here."""

    def detectMultiScale(  # noqa: N802
        self, image: NDArray[np.uint8], scale: float, neighbours: int, flags: int, min_size: ImageSize, /
    ) -> list[tuple[int, int, int, int]]:
        """Return boxes (left, top, width, height)."""
        ...


def saliency_map(image: Image.Image) -> SaliencyMap:
    """Return a map of what differs from the rest in frequency and colour, with some weight on the middle.

    Spectral residual of Hou and Zhang (2007), and distance from the mean colour (Achanta et al. 2009).

    Returns:
        (MAP_SIDE, MAP_SIDE), of sum 1.
    """
    small = image.convert("RGB").resize((MAP_SIDE, MAP_SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(small.convert("LAB"), dtype=np.float64)
    residual = _spectral_residual(values[..., 0])
    distance = np.square(values - values.mean((0, 1))).sum(-1)
    return (1 - CENTRE_BIAS) * (_normalize(residual) + _normalize(distance)) / 2 + CENTRE_BIAS * _centre_gaussian()


def face_map(image: Image.Image) -> SaliencyMap:
    """Return a map of faces, which count by their area; without any face, return the `saliency_map`.

    Raises:
        BadDataset: OpenCV is not installed, or has no face detector (version 5).
    """
    face_boxes = _detect_faces(image.convert("L"))
    if not face_boxes:
        return saliency_map(image)
    face_counts = np.zeros((MAP_SIDE, MAP_SIDE))
    for left, top, right, bottom in face_boxes:
        rows = slice(int(top * MAP_SIDE), max(int(top * MAP_SIDE) + 1, round(bottom * MAP_SIDE)))
        face_counts[rows, int(left * MAP_SIDE) : max(int(left * MAP_SIDE) + 1, round(right * MAP_SIDE))] += 1
    return (1 - CENTRE_BIAS) * _normalize(face_counts) + CENTRE_BIAS * _centre_gaussian()


def centre_map(image: Image.Image) -> SaliencyMap:  # noqa: ARG001
    """Return a map of the middle, the same for every picture."""
    return _centre_gaussian()


FOCUSES: dict[str, FocusFunction] = {"middle": centre_map, "salient": saliency_map, "faces": face_map}


def best_box(size: ImageSize, target: ImageSize, importance: SaliencyMap) -> CropBox:
    """Return the largest box of the target's aspect ratio that covers most of a map, the most central of equal ones.

    Args:
        size: (width, height) of the picture.
        target: Size with the aspect ratio of the box.
        importance: Map of sum 1.
    """
    (width, height), (target_width, target_height) = size, target
    scale = min(width / target_width, height / target_height)
    crop_width, crop_height = target_width * scale, target_height * scale
    integral_image = np.pad(importance.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes = [
        (left, top, left + crop_width, top + crop_height)
        for left in np.linspace(0, width - crop_width, POSITIONS_PER_SIDE if crop_width < width else 1).tolist()
        for top in np.linspace(0, height - crop_height, POSITIONS_PER_SIDE if crop_height < height else 1).tolist()
    ]

    def score(box: CropBox) -> tuple[float, float]:
        off_centre = abs(box[0] + box[2] - width) + abs(box[1] + box[3] - height)
        return round(_sum_in_box(integral_image, box, size), 6), -off_centre

    return max(boxes, key=score)


def _sum_in_box(integral_image: SaliencyMap, box: CropBox, size: ImageSize) -> float:
    """Return the sum of a map in a box, by bilinear interpolation of its integral image."""
    columns = np.clip(np.array([box[0], box[2]]) / size[0] * MAP_SIDE, 0, MAP_SIDE)
    rows = np.clip(np.array([box[1], box[3]]) / size[1] * MAP_SIDE, 0, MAP_SIDE)
    corners = np.array(
        [[_interpolate(integral_image, row, column) for column in columns.tolist()] for row in rows.tolist()]
    )
    return float(corners[1, 1] - corners[0, 1] - corners[1, 0] + corners[0, 0])


def _interpolate(integral_image: SaliencyMap, row: float, column: float) -> float:
    above, left = min(int(row), MAP_SIDE - 1), min(int(column), MAP_SIDE - 1)
    row_fraction, column_fraction = row - above, column - left
    corner = integral_image[above : above + 2, left : left + 2]
    return float(np.array([1 - row_fraction, row_fraction]) @ corner @ np.array([1 - column_fraction, column_fraction]))


def _spectral_residual(grey: SaliencyMap) -> SaliencyMap:
    spectrum = np.fft.fft2(grey)
    amplitude = np.log(np.abs(spectrum) + 1e-9)
    residual = amplitude - _box_blur(amplitude, 3)
    response = np.square(np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))))
    return _box_blur(_box_blur(response, 5), 5)


def _box_blur(values: SaliencyMap, length: int) -> SaliencyMap:
    """Return the mean around every position; the picture wraps around at its edges."""
    shifts = range(-(length // 2), length // 2 + 1)
    rows = np.mean([np.roll(values, shift, 0) for shift in shifts], axis=0)
    return np.mean([np.roll(rows, shift, 1) for shift in shifts], axis=0)


def _normalize(values: SaliencyMap) -> SaliencyMap:
    total = values.sum()
    return values / total if total > 0 else np.full_like(values, 1 / values.size)


def _centre_gaussian() -> SaliencyMap:
    offsets = np.linspace(-1, 1, MAP_SIDE)
    return _normalize(np.exp(-2 * (offsets[:, None] ** 2 + offsets**2)))


def _detect_faces(grey: Image.Image) -> list[CropBox]:
    """Return the boxes of faces, as shares of the picture's width and height."""
    detector = _load_detector()
    min_side = max(16, round(min(grey.size) * MIN_FACE_SHARE))
    boxes = detector.detectMultiScale(np.asarray(grey), 1.1, 6, 0, (min_side, min_side))
    width, height = grey.size
    return [
        (left / width, top / height, (left + face_width) / width, (top + face_height) / height)
        for left, top, face_width, face_height in boxes
    ]


def _load_detector() -> FaceDetector:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError:
        raise BadDataset(f"the focus on faces needs OpenCV, which is not installed: {_OPENCV_ADVICE}") from None
    if not hasattr(cv2, "CascadeClassifier"):
        raise BadDataset(f"OpenCV {cv2.__version__} does not contain a face detector: {_OPENCV_ADVICE}")
    return cast("FaceDetector", cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / FACE_CASCADE)))
