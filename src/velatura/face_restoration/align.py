"""Cut a face out of an image in the position that the restoring networks were trained on, and paste it back."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Where eyes, nose and corners of the mouth are in an aligned face, by its side: the means of FFHQ's faces in 512 pixels
TEMPLATE = (
    np.array(
        [
            (192.98138, 239.94708),
            (318.90277, 240.1936),
            (256.63416, 314.01935),
            (201.26117, 371.41043),
            (313.08905, 371.15118),
        ]
    )
    / 512
)
EDGE_COLOUR = (132, 133, 135)  # outside the image: facexlib's (135, 133, 132), which is blue, green, red
BORDER = 2  # pixels of a face that repeat the image's edge before that colour begins
FEATHER = 0.12  # width of the mask's soft edge, by the side of the face
MARGIN = 0.02  # around it, where the mask is empty
MAX_FACE_SIZE = 4  # of an aligned face, in longer sides of the image; a larger one is none, and needs a huge border


class Similarity(NamedTuple):
    """A rotation with a scale, then a shift, of points as complex numbers: `factor * point + shift`."""

    factor: complex
    shift: complex

    @property
    def inverse(self) -> Similarity:
        """Return the transform that undoes it."""
        return Similarity(1 / self.factor, -self.shift / self.factor)

    @property
    def scale(self) -> float:
        """Return the factor of lengths."""
        return abs(self.factor)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Return points transformed, as (points, 2) like the given ones."""
        moved = self.factor * _to_complex(points) + self.shift
        return np.stack([moved.real, moved.imag], 1)


def fit_similarity(source: np.ndarray, target: np.ndarray) -> Similarity | None:
    """Return the transform that takes points to others with the least squared distance, None for points on one spot.

    Args:
        source, target: (points, 2), x and y.
    """
    from_points, to_points = _to_complex(source), _to_complex(target)
    from_centre, to_centre = complex(from_points.mean()), complex(to_points.mean())
    spread = np.square(np.abs(from_points - from_centre)).sum()
    if not spread > 0:  # of points on one spot, or of NaN
        return None
    factor = complex(np.vdot(from_points - from_centre, to_points - to_centre) / spread)
    return Similarity(factor, to_centre - factor * from_centre) if factor else None


def align_face(image: Image.Image, landmarks: np.ndarray, side: int) -> tuple[Image.Image, Similarity] | None:
    """Cut a face out of an image, so that its landmarks lie where those of FFHQ's faces lie.

    Args:
        image: An image in RGB.
        landmarks: Eyes, nose and corners of the mouth in its pixels, (5, 2).
        side: Sides of the result in pixels.

    Returns:
        The face, and the transform from the image's pixels to the face's; None for landmarks that cannot be a face's.
    """
    to_face = fit_similarity(landmarks, TEMPLATE * side)
    if to_face is None or side > to_face.scale * MAX_FACE_SIZE * max(image.size):
        return None
    # so that the colour outside does not mix into the last pixels of the image
    border = math.ceil(BORDER * max(1, 1 / to_face.scale))
    wider = Image.fromarray(np.pad(np.asarray(image), ((border, border), (border, border), (0, 0)), mode="edge"))
    from_wider = Similarity(to_face.factor, to_face.shift - to_face.factor * complex(border, border))
    return _transform(wider, from_wider, (side, side), EDGE_COLOUR), to_face


def paste_face(image: Image.Image, face: Image.Image, to_face: Similarity) -> Image.Image:
    """Return an image with a face in it, whose edge is soft.

    Args:
        image: An image in RGB.
        face: The face in RGB, a square.
        to_face: The transform from the image's pixels to the face's.
    """
    box = _face_box(image.size, face.width, to_face)
    if box is None:
        return image
    left, top, right, bottom = box
    to_box = Similarity(to_face.inverse.factor, to_face.inverse.shift - complex(left, top))
    size = right - left, bottom - top
    pasted = np.asarray(_transform(face, to_box, size), dtype=np.float32)
    mask = np.asarray(_transform(face_mask(face.width), to_box, size), dtype=np.float32)[..., None] / 255
    result = np.array(image)
    part = result[top:bottom, left:right]
    result[top:bottom, left:right] = (part * (1 - mask) + pasted * mask).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(result)


def face_mask(side: int) -> Image.Image:
    """Return how much of each pixel of a face is pasted, in "L": 255 inside, falling smoothly to 0 before the edge."""
    distance = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) / side
    ramp = ((distance - MARGIN) / FEATHER).clip(0, 1)
    smooth = ramp * ramp * (3 - 2 * ramp)
    return Image.fromarray((np.outer(smooth, smooth) * 255).round().astype(np.uint8))


def _face_box(size: tuple[int, int], side: int, to_face: Similarity) -> tuple[int, int, int, int] | None:
    """Return the part of an image that a face covers, None if it is outside."""
    corners = to_face.inverse.apply(np.array([(0, 0), (side, 0), (0, side), (side, side)], dtype=np.float64))
    left, top = (max(0, math.floor(value)) for value in corners.min(0))
    right, bottom = (min(length, math.ceil(value)) for length, value in zip(size, corners.max(0), strict=True))
    return (left, top, right, bottom) if left < right and top < bottom else None


def _transform(
    image: Image.Image, transform: Similarity, size: tuple[int, int], fill: tuple[int, int, int] | None = None
) -> Image.Image:
    """Return an image under a transform of its pixels; where it becomes smaller, its pixels are averaged first."""
    shrink = max(1, int(1 / transform.scale))
    if shrink > 1:
        image = image.reduce(shrink)
        transform = Similarity(transform.factor * shrink, transform.shift)
    back = transform.inverse
    cosine, sine = back.factor.real, back.factor.imag
    data = (cosine, -sine, back.shift.real, sine, cosine, back.shift.imag)
    return image.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC, fillcolor=fill)


def _to_complex(points: np.ndarray) -> NDArray[np.complex128]:
    return np.asarray(points[:, 0] + 1j * points[:, 1], dtype=np.complex128)
