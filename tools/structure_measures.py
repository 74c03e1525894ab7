"""What the tiny base's own eye says of pictures: how alike they are, and which subject they show."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import velatura
from velatura.datasets.captioners.tiny_captioner import load_vision_tower, to_pixels
from velatura.datasets.captioners.tiny_subjects import SubjectFinder
from velatura.tiny import DATA_FOLDER


class VisionMeasures:
    """The vision tower of the tiny base's CLIP, and what finds subjects in its UNet."""

    def __init__(self) -> None:
        self._vision, _ = load_vision_tower(DATA_FOLDER / "tiny" / "clip_vision")
        self._subjects = SubjectFinder(velatura.tiny())

    def similarity(self, pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> float:
        """The mean cosine of the vectors of pictures with the mean vector of others."""
        return float((self._vectors(pictures) @ F.normalize(self._vectors(others).mean(dim=0), dim=0)).mean())

    def subjects(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Which subject each picture shows."""
        return self._subjects.find(torch.cat([to_pixels(picture) for picture in pictures]))

    @torch.no_grad()
    def _vectors(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(pictures, features), of length 1."""
        pixels = torch.cat([to_pixels(picture) for picture in pictures])
        return F.normalize(cast("Tensor", self._vision(pixel_values=pixels).image_embeds), dim=-1)
