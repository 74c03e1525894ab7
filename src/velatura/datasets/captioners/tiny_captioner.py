"""Captions by the tiny base itself, which knows only the drawings that it was trained on."""

from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from velatura.datasets.captioners.tiny_subjects import SubjectFinder
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.tensors import open_state_dict
from velatura.tiny import DATA_FOLDER, tiny
from velatura.tiny_world import COLOURS, PLACES, PLACES_WITHOUT_TIME, SUBJECTS, TIMES, with_article

PICTURE_PIXELS = 64
TEXT_BATCH_SIZE = 256


class TinyCaptioner:
    """Captioner that names the subject of a picture with its colour, place and time of day.

    Colour, place and time are those whose caption has the CLIP embedding nearest to the picture's. The tiny CLIP hardly
    distinguishes subjects, so the base's UNet finds the subject, see tiny_subjects.py.
    """

    def __init__(self) -> None:
        base = tiny()
        self._text_encoder = base.text.encoders[0]
        self._subjects = SubjectFinder(base)
        self._vision, self._projection = load_vision_tower(DATA_FOLDER / "tiny" / "clip_vision")

    @torch.no_grad()
    def caption(self, image: Image.Image) -> str:
        """Return a caption such as "a red house on the beach at night"."""
        pixels = to_pixels(image)
        colour, place, time = self._find_setting(pixels)
        subject = self._subjects.find(pixels)[0]
        return f"{with_article(colour)} {subject} {place} {time}".strip()

    def _find_setting(self, pixels: Tensor) -> tuple[str, str, str]:
        image_embedding = F.normalize(cast("Tensor", self._vision(pixel_values=pixels).image_embeds), dim=-1)
        settings, setting_embeddings = self._setting_embeddings
        return settings[int((setting_embeddings @ image_embedding[0]).argmax())]

    @cached_property
    def _setting_embeddings(self) -> tuple[list[tuple[str, str, str]], Tensor]:
        """Return all (colour, place, time), and their text embeddings, averaged over all subjects."""
        times = {place: ("",) if place in PLACES_WITHOUT_TIME else TIMES for place in PLACES}
        settings = [(colour, place, time) for colour, place in product(COLOURS, PLACES) for time in times[place]]
        texts = [
            f"{with_article(colour)} {subject} {place} {time}"
            for colour, place, time in settings
            for subject in SUBJECTS
        ]
        starts = range(0, len(texts), TEXT_BATCH_SIZE)
        embeddings = torch.cat([self._encode_texts(texts[start : start + TEXT_BATCH_SIZE]) for start in starts])
        return settings, F.normalize(embeddings.view(len(settings), len(SUBJECTS), -1).mean(dim=1), dim=-1)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        """Return text embeddings of length 1, (texts, features)."""
        ids = self._text_encoder.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        pooled = self._text_encoder.model(input_ids=cast("Tensor", ids)).pooler_output
        return F.normalize(cast("Tensor", pooled) @ self._projection.T, dim=-1)


def to_pixels(image: Image.Image) -> Tensor:
    """Return the picture as (1, 3, 64, 64), from -1 to 1."""
    size = PICTURE_PIXELS, PICTURE_PIXELS
    values = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), dtype=np.float32)
    return torch.tensor(values / 127.5 - 1).permute(2, 0, 1)[None]


def load_vision_tower(folder: Path) -> tuple[nn.Module, Tensor]:
    """Load the vision tower of a CLIP with its projection, and the projection of its text tower, in float32."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config: Any = CLIPVisionConfig
    vision = cast("nn.Module", CLIPVisionModelWithProjection(config.from_pretrained(folder, local_files_only=True)))
    vision.float()
    vision.load_state_dict({key: value.float() for key, value in open_weights(folder, "model").tensors.items()})
    projection = open_state_dict(folder / "text_projection.safetensors").tensors["text_projection.weight"]
    return vision.eval(), projection.float()
