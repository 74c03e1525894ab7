"""Find faces in an image: run the detector, turn its numbers into boxes and landmarks, and leave out doubles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from velatura.face_restoration.read_files import RetinaFaceDetector
from velatura.face_restoration.retinaface import RawDetections

# Settings with which RetinaFace was trained
CELL_SIDES = (8, 16, 32)  # of the cells of its grids, in pixels
ANCHOR_SIDES = ((16, 32), (64, 128), (256, 512))  # of the two anchors of each cell of a grid, in pixels
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2  # the unit of offsets in sides of an anchor, and of logarithms of sizes
MEAN_COLOUR = (104.0, 117.0, 123.0)  # blue, green, red

SEARCH_PIXELS = 640  # of the shorter side while faces are searched, as in A1111
MAX_SEARCH_PIXELS = 4096  # of the longer side, which bounds the memory
MIN_SCORE = 0.97  # A1111's for faces that are restored
MAX_OVERLAP = 0.4  # of two boxes, by their union; RetinaFace's own
MAX_CANDIDATES = 5000  # of which overlapping ones are left out; RetinaFace's own
MIN_EYE_DISTANCE = 5.0  # in pixels of the search; A1111 leaves out smaller faces


class DetectedFace(NamedTuple):
    """A face in an image, in pixels from its upper left corner.

    Attributes:
        score: How sure the detector is, 0 to 1.
        box: Left, top, right and bottom.
        landmarks: Both eyes, the tip of the nose and the corners of the mouth, those at the left of the image first:
            an array of (5, 2), x and y.
    """

    score: float
    box: tuple[float, float, float, float]
    landmarks: np.ndarray


@torch.no_grad()
def detect_faces(
    detector: RetinaFaceDetector,
    image: Image.Image,
    *,
    device: torch.device | str = "cpu",
    min_score: float = MIN_SCORE,
) -> list[DetectedFace]:
    """Find the faces of an image, the surest first.

    Args:
        detector: The network; it is moved to the device, and stays there.
        image: An image in RGB.
        device: Where the network computes.
        min_score: The least score of a face, 0 to 1.
    """
    size = _search_size(image.size)
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    pixels = torch.tensor(np.asarray(resized)[..., ::-1].copy(), dtype=torch.float32) - torch.tensor(MEAN_COLOUR)
    network = detector.network.to(device)
    raw = network(pixels.permute(2, 0, 1)[None].to(device))
    scale = image.width / size[0], image.height / size[1]
    faces: list[DetectedFace] = []
    for score, box, landmarks in decode_detections(RawDetections(*(part[0].cpu() for part in raw)), size, min_score):
        if np.linalg.norm(landmarks[1] - landmarks[0]) >= MIN_EYE_DISTANCE:
            left, top, right, bottom = (float(value) for value in np.asarray(box) * (*scale, *scale))
            faces.append(DetectedFace(score, (left, top, right, bottom), landmarks * scale))
    return faces


def decode_detections(raw: RawDetections, size: tuple[int, int], min_score: float) -> Iterator[DetectedFace]:
    """Turn the network's numbers into faces, and leave out those that overlap surer ones; the surest comes first.

    Args:
        raw: What the network gives for one image, without the dimension of the batch.
        size: Width and height of the pixels that the network read.
        min_score: The least score of a face.
    """
    anchors = anchor_boxes(size)
    is_sure = raw.scores > min_score  # NaN is not
    order = raw.scores[is_sure].argsort(descending=True, stable=True)[:MAX_CANDIDATES]
    scores, anchors = raw.scores[is_sure][order], anchors[is_sure][order]
    offsets, points = raw.boxes[is_sure][order], raw.landmarks[is_sure][order]
    centres, sides = anchors[:, :2], anchors[:, 2:]
    box_centres = centres + offsets[:, :2] * CENTRE_VARIANCE * sides
    box_sides = sides * (offsets[:, 2:] * SIZE_VARIANCE).exp()
    boxes = torch.cat([box_centres - box_sides / 2, box_centres + box_sides / 2], 1)
    landmarks = centres[:, None] + points * CENTRE_VARIANCE * sides[:, None]  # (faces, 5, 2)
    for index in _distinct(boxes):
        left, top, right, bottom = (float(value) for value in boxes[index])
        yield DetectedFace(float(scores[index]), (left, top, right, bottom), landmarks[index].double().numpy())


def anchor_boxes(size: tuple[int, int]) -> Tensor:
    """Return centre x, centre y, width and height of each anchor in pixels, (anchors, 4), in the network's order.

    Args:
        size: Width and height of the pixels that the network reads.
    """
    grids: list[Tensor] = []
    for cell_side, sides in zip(CELL_SIDES, ANCHOR_SIDES, strict=True):
        columns, rows = (-(-length // cell_side) for length in size)
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        centres = (torch.stack([x, y], -1) + 0.5) * cell_side  # (rows, columns, 2)
        repeated_centres = centres[:, :, None].expand(-1, -1, len(sides), -1)
        squares = torch.tensor(sides, dtype=torch.float32)[:, None].expand(rows, columns, -1, 2)
        grids.append(torch.cat([repeated_centres, squares], -1).flatten(0, 2))
    return torch.cat(grids)


def _distinct(boxes: Tensor) -> list[int]:
    """Return the indices of boxes that do not overlap an earlier one by more than MAX_OVERLAP (NMS)."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    remaining = torch.arange(len(boxes))
    chosen: list[int] = []
    while len(remaining):
        first, remaining = remaining[0], remaining[1:]
        chosen.append(int(first))
        corner = torch.maximum(boxes[remaining, :2], boxes[first, :2])
        shared_sides = (torch.minimum(boxes[remaining, 2:], boxes[first, 2:]) - corner).clamp(min=0)
        shared = shared_sides.prod(1)
        overlap = shared / (areas[remaining] + areas[first] - shared)
        remaining = remaining[overlap <= MAX_OVERLAP]
    return chosen


def _search_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = min(SEARCH_PIXELS / min(size), MAX_SEARCH_PIXELS / max(size))
    width, height = (max(1, int(side * scale)) for side in size)
    return width, height
