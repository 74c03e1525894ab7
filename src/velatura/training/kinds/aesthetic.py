"""Aesthetics from folders: nothing is trained, CLIP looks at the pictures once."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.datasets.folder import read_dataset
from velatura.datasets.pictures import read_upright
from velatura.formats.clip import find_clip_for, open_clip_model
from velatura.overlays.aesthetic import Aesthetic

PICTURES_PER_BATCH = 64  # pictures in memory
FAMILY_RATES = {"tiny": 1e-3}  # of families whose small towers need longer steps than CLIP's 1e-4 to show anything


def aesthetic_from(
    base: Base,
    folder: str | os.PathLike[str],
    *,
    clip: str | os.PathLike[str] | None = None,
    name: str = "",
    **settings: object,
) -> Aesthetic:
    """The mean of what CLIP sees in the pictures of a folder, those in 10_NAME/ ten times; captions are not needed.

    clip: the folder of the CLIP that the base's text encoder is from, needed where it is not at hand: the tiny base
    ships its own, and others' are looked for in the hub's cache. settings: steps, rate, blend, ... as Aesthetic.of.
    """
    examples = read_dataset(folder, needs_captions=False).examples
    clip_encoder = open_clip_model(clip or find_clip_for(base.text.encoders[0].width))
    weighted_vectors, count = list[Tensor](), sum(example.repeats for example in examples)
    for first in range(0, len(examples), PICTURES_PER_BATCH):
        batch = examples[first : first + PICTURES_PER_BATCH]
        vectors = clip_encoder.encode_images([read_upright(example.path) for example in batch])
        for example, vector in zip(batch, vectors, strict=True):
            weighted_vectors.append(vector * (example.repeats / count))
    family_rate = {"rate": FAMILY_RATES[base.family.name]} if base.family.name in FAMILY_RATES else {}
    aesthetic = Aesthetic.from_vector(
        torch.stack(weighted_vectors).sum(dim=0), clip_encoder.text_projection, name=name, **(family_rate | settings)
    )
    aesthetic.card = aesthetic.card.replace(family=base.family.name, base=base.name, base_hash=base.hash)
    return aesthetic
