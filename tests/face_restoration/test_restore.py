"""Faces are cut out in the position that the networks know, and pasted back where they were."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import velatura
from velatura.face_restoration import align, detect, restore
from velatura.face_restoration.align import TEMPLATE, align_face, face_mask, fit_similarity, paste_face
from velatura.face_restoration.detect import DetectedFace, anchor_boxes
from velatura.sampling.resolve.faces import FaceModels, restore_picture_faces


def landscape(width: int, height: int) -> Image.Image:
    """A picture without sharp edges, which resampling changes little."""
    noise = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(8))


def landmarks(centre: tuple[float, float], side: float, angle: float) -> np.ndarray:
    """The landmarks of a face of a side that is turned by an angle in degrees."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (TEMPLATE - 0.5) * side @ np.array([[cosine, sine], [-sine, cosine]]) + centre


def test_a_similarity_is_found_from_points():
    source = np.array([(0.0, 0.0), (2.0, 0.0), (0.0, 1.0)])
    found = fit_similarity(source, np.array([(5.0, 7.0), (5.0, 11.0), (3.0, 7.0)]))  # a quarter turn, doubled
    assert found is not None
    assert np.allclose(found.apply(source), [(5, 7), (5, 11), (3, 7)])
    assert found.scale == pytest.approx(2)
    assert np.allclose(found.inverse.apply(found.apply(source)), source)


def test_a_similarity_has_the_least_squared_distance():
    generator = np.random.default_rng(3)
    source, target = generator.normal(size=(5, 2)), generator.normal(size=(5, 2))
    x, y = source.T
    zeros, ones = np.zeros(5), np.ones(5)
    # a x - b y + c and b x + a y + d, by numpy's own least squares
    matrix = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    a, b, c, d = np.linalg.lstsq(matrix, target.T.flatten(), rcond=None)[0]
    found = fit_similarity(source, target)
    assert found is not None
    assert np.allclose([found.factor, found.shift], [a + 1j * b, c + 1j * d])


@pytest.mark.parametrize("points", [np.full((5, 2), 3.0), np.full((5, 2), np.nan)])
def test_landmarks_on_one_spot_are_not_a_face(points):
    assert align_face(landscape(64, 64), points, 32) is None


@pytest.mark.parametrize("points", [TEMPLATE * 1e9, TEMPLATE * 32 * 15_000], ids=["gigapixels", "a border of 30,000"])
def test_landmarks_much_larger_than_the_image_are_not_a_face(points, monkeypatch):
    image = landscape(64, 64)
    assert align_face(image, points, 32) is None
    monkeypatch.setattr(restore, "detect_faces", lambda *_, **__: faces_at(points))
    assert restore.restore_faces(Bright(), None, image).image is image


@pytest.mark.parametrize(("side", "angle"), [(120, 0), (60, 30), (400, -20), (120, 180)])
def test_the_landmarks_of_a_face_come_to_the_template(side, angle):
    points = landmarks((200, 180), side, angle)
    pixels = np.zeros((360, 400, 3), dtype=np.float32)
    y, x = np.mgrid[:360, :400] + 0.5
    for point_x, point_y in points:  # a spot at each landmark, wider than a pixel of either image
        pixels += np.exp(-((x - point_x) ** 2 + (y - point_y) ** 2) / (side * 0.02) ** 2)[..., None]
    aligned = align_face(Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8)), points, 128)
    assert aligned is not None
    values = np.asarray(aligned[0], dtype=float)[..., 0]
    rows, columns = np.mgrid[:128, :128] + 0.5
    for point_x, point_y in TEMPLATE * 128:
        weights = values * ((rows - point_y) ** 2 + (columns - point_x) ** 2 < 10**2)
        assert (weights * columns).sum() / weights.sum() == pytest.approx(point_x, abs=0.3)
        assert (weights * rows).sum() / weights.sum() == pytest.approx(point_y, abs=0.3)


@pytest.mark.parametrize(("side", "angle"), [(120, 0), (60, 30), (700, -20), (120, 180)])
def test_a_face_that_is_pasted_back_unchanged_changes_nothing_but_by_resampling(side, angle):
    image = landscape(400, 360)
    aligned = align_face(image, landmarks((180, 170), side, angle), 256)
    assert aligned is not None
    difference = np.asarray(paste_face(image, *aligned), dtype=int) - np.asarray(image, dtype=int)
    assert abs(difference).max() <= 6
    assert abs(difference).mean() < 1


def test_a_face_is_pasted_with_a_soft_edge_and_nowhere_else():
    image = Image.new("RGB", (200, 150), (10, 20, 30))
    aligned = align_face(image, landmarks((30, 80), 80, 0), 64)  # partly outside
    assert aligned is not None
    pasted = np.asarray(paste_face(image, Image.new("RGB", (64, 64), (250, 250, 250)), aligned[1]))
    assert pasted[80, 30].tolist() == [250, 250, 250]
    assert (pasted[:, 75:] == (10, 20, 30)).all()
    edge = pasted[80, 55:72, 0].astype(int)  # where the mask falls
    assert (np.diff(edge) <= 0).all()
    assert len(set(edge.tolist())) > 5


def test_outside_the_image_a_face_has_the_colour_that_the_networks_were_trained_with():
    aligned = align_face(Image.new("RGB", (200, 150)), landmarks((10, 10), 80, 0), 64)
    assert aligned is not None
    # facexlib's borderValue (135, 133, 132), on images of OpenCV: blue, green, red
    assert aligned[0].getpixel((2, 2)) == (132, 133, 135)


def test_a_mask_is_whole_inside_and_empty_at_the_edge():
    mask = np.asarray(face_mask(100))
    assert mask[20:80, 20:80].min() == 255
    assert max(mask[0].max(), mask[:, -1].max()) == 0


def test_anchors_are_squares_around_the_cells_of_three_grids():
    anchors = anchor_boxes((20, 9))  # cells: 3 x 2, 2 x 1, 1 x 1
    assert anchors.shape == (2 * (6 + 2 + 1), 4)
    assert anchors[:3].tolist() == [[4, 4, 16, 16], [4, 4, 32, 32], [12, 4, 16, 16]]
    assert anchors[-1].tolist() == [16, 16, 512, 512]


class Bright:
    """Stands for a network: makes every face brighter."""

    side = 64
    network = torch.nn.Identity()

    @staticmethod
    def restore(face: torch.Tensor, fidelity: float) -> torch.Tensor:
        return face + fidelity


def faces_at(*all_points: np.ndarray) -> list[DetectedFace]:
    return [DetectedFace(1.0, (0.0, 0.0, 1.0, 1.0), points) for points in all_points]


def test_every_face_is_restored_and_the_rest_stays(monkeypatch):
    image = Image.new("RGB", (300, 100), (100, 100, 100))
    found = faces_at(landmarks((50, 50), 60, 0), landmarks((220, 50), 60, 10), np.full((5, 2), 9.0))
    monkeypatch.setattr(restore, "detect_faces", lambda *_, **__: found)
    result = restore.restore_faces(Bright(), None, image, fidelity=0.4)
    assert result.face_count == 2
    pixels = np.asarray(result.image)[..., 0]
    assert pixels[50, 50] == pixels[50, 220] == 100 + round(0.4 * 127.5)
    assert (pixels[:, 110:160] == 100).all()


def test_of_too_many_faces_the_surest_are_restored(monkeypatch):
    image = Image.new("RGB", (300, 100), (100, 100, 100))
    found = faces_at(*(landmarks((10 + 4 * number, 50), 6, 0) for number in range(70)))
    monkeypatch.setattr(restore, "detect_faces", lambda *_, **__: found)
    calls: list[tuple[int, int]] = []
    result = restore.restore_faces(Bright(), None, image, on_face=lambda *numbers: calls.append(numbers))
    assert (result.face_count, result.left_out) == (64, 6)
    assert calls == [(done, 64) for done in range(65)]
    assert np.asarray(result.image)[50, 10 + 4 * 65 :].max() == 100
    message = "70 faces were found in a picture, and the 64 surest are restored"
    with pytest.warns(velatura.VelaturaWarning, match=message):
        restore_picture_faces(FaceModels("x", Bright(), None), [image, image], weight=0.4, device=torch.device("cpu"))


def test_what_is_raised_before_a_face_ends_the_work(monkeypatch):
    monkeypatch.setattr(restore, "detect_faces", lambda *_, **__: faces_at(landmarks((50, 50), 60, 0)))

    def stop(*_: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        restore.restore_faces(Bright(), None, landscape(100, 100), on_face=stop)


def test_a_picture_without_faces_is_returned_as_it_is(monkeypatch):
    image = landscape(40, 30)
    monkeypatch.setattr(restore, "detect_faces", lambda *_, **__: [])
    result = restore.restore_faces(Bright(), None, image)
    assert result.image is image
    assert result.face_count == 0


def test_transparency_stays(monkeypatch):
    image = Image.new("RGBA", (100, 100), (90, 90, 90, 60))
    monkeypatch.setattr(restore, "detect_faces", lambda *_, **__: faces_at(landmarks((50, 50), 60, 0)))
    result = restore.restore_faces(Bright(), None, image).image
    assert (result.mode, result.getpixel((50, 50))[3]) == ("RGBA", 60)


class Recorder:
    """Stands for a detector's network: gives one face at an anchor, and keeps what it read."""

    def __init__(self, anchor: int) -> None:
        self.anchor = anchor

    def to(self, _device: object) -> Recorder:
        return self

    def __call__(self, pixels: torch.Tensor) -> detect.RawDetections:
        self.pixels = pixels
        count = len(anchor_boxes((pixels.shape[3], pixels.shape[2])))
        scores = torch.zeros(1, count)
        scores[0, self.anchor] = 0.99
        points = torch.tensor([(-2.0, -1.0), (2.0, -1.0), (0.0, 0.0), (-1.0, 2.0), (1.0, 2.0)])
        return detect.RawDetections(scores, torch.zeros(1, count, 4), points.expand(1, count, 5, 2))


@pytest.mark.parametrize(("size", "searched"), [((320, 480), (640, 960)), ((2560, 1280), (1280, 640))])
def test_faces_are_searched_at_one_size_and_returned_at_the_images(size, searched):
    network = Recorder(anchor=1)
    detector = detect.RetinaFaceDetector("x", network)  # pyright: ignore[reportArgumentType]
    [face] = detect.detect_faces(detector, Image.new("RGB", size, (200, 100, 50)))
    scale = size[0] / searched[0]
    assert network.pixels.shape[2:] == searched[::-1]
    assert network.pixels[0, :, 0, 0].tolist() == [50 - 104, 100 - 117, 200 - 123]  # blue, green, red
    # the second anchor of the first cell: 32 pixels around (4, 4); a landmark's unit is a tenth of that
    assert face.box == pytest.approx([value * scale for value in (-12, -12, 20, 20)])
    assert face.landmarks[0] == pytest.approx(np.array([4 - 6.4, 4 - 3.2]) * scale)


def test_faces_too_small_to_be_restored_are_left_out(monkeypatch):
    monkeypatch.setattr(detect, "MIN_EYE_DISTANCE", 13.0)  # the eyes of the face above are 12.8 pixels apart
    detector = detect.RetinaFaceDetector("x", Recorder(anchor=1))  # pyright: ignore[reportArgumentType]
    assert detect.detect_faces(detector, Image.new("RGB", (640, 640))) == []


def test_the_template_is_symmetric_enough_to_be_a_face():
    left, right = align.TEMPLATE[0], align.TEMPLATE[1]
    assert left[0] < right[0]
    assert left[1] == pytest.approx(right[1], abs=0.01)
