"""Restore the faces of an image: find them, align each, let the network restore it, and paste it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from velatura.face_restoration.align import align_face, paste_face
from velatura.face_restoration.detect import detect_faces
from velatura.face_restoration.read_files import FaceRestorer, RetinaFaceDetector

DEFAULT_FIDELITY = 0.5  # A1111's default of code_former_weight
MAX_FACES = 64  # of an image: each takes seconds, and a detector may take noise for thousands

OnFace = Callable[[int, int], None]  # (faces done, faces to restore)


class RestoredImage(NamedTuple):
    """An image whose faces were restored.

    Attributes:
        image: The image.
        face_count: How many faces were restored.
        left_out: How many more were found, of which the detector is less sure, and stay as they are.
    """

    image: Image.Image
    face_count: int
    left_out: int = 0


def restore_faces(
    restorer: FaceRestorer,
    detector: RetinaFaceDetector,
    image: Image.Image,
    *,
    fidelity: float = DEFAULT_FIDELITY,
    device: torch.device | str = "cpu",
    on_face: OnFace | None = None,
) -> RestoredImage:
    """Restore the faces of an image, one after the other: the MAX_FACES of which the detector is surest.

    Args:
        restorer: GFPGAN or CodeFormer; it is moved to the device, and stays there.
        detector: Finds the faces; it is moved too.
        image: An image in RGB, or in RGBA, whose transparency stays.
        fidelity: CodeFormer's w, 0 for the best looks to 1 for the closest likeness. GFPGAN does not have it.
        device: Where the networks compute.
        on_face: Called before each face and at the end; what it raises ends the work.

    Returns:
        The image; without a face the one that was given.
    """
    colours = image.convert("RGB")
    restored, face_count = colours, 0
    found = detect_faces(detector, colours, device=device)
    faces = found[:MAX_FACES]
    for done, face in enumerate(faces):
        if on_face is not None:
            on_face(done, len(faces))
        aligned = align_face(colours, face.landmarks, restorer.side)
        if aligned is None:
            continue
        crop, to_face = aligned
        restored = paste_face(restored, restore_face(restorer, crop, fidelity=fidelity, device=device), to_face)
        face_count += 1
    if on_face is not None:
        on_face(len(faces), len(faces))
    if not face_count:
        return RestoredImage(image, 0)
    if image.has_transparency_data:
        restored.putalpha(image.convert("RGBA").getchannel("A"))
    return RestoredImage(restored, face_count, len(found) - len(faces))


@torch.no_grad()
def restore_face(
    restorer: FaceRestorer, face: Image.Image, *, fidelity: float, device: torch.device | str = "cpu"
) -> Image.Image:
    """Restore one aligned face, of the sides that the network reads."""
    restorer.network.to(device)
    pixels = torch.tensor(np.asarray(face), dtype=torch.float32, device=device).permute(2, 0, 1)[None] / 127.5 - 1
    restored = restorer.restore(pixels, fidelity)[0].permute(1, 2, 0)
    # a half-trained network may return NaN, which has no colour
    values = ((restored.nan_to_num(-1) + 1) * 127.5).round().clamp(0, 255)
    return Image.fromarray(values.to(torch.uint8).cpu().numpy())
