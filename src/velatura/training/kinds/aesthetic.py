"""Aesthetic gradients from a folder of pictures: CLIP encodes the pictures once, nothing is trained."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from velatura.arguments import check_arguments
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.datasets.folder import read_dataset
from velatura.datasets.pictures import read_upright
from velatura.errors import gather_warnings
from velatura.formats.clip import find_clip_for, open_clip_model
from velatura.overlays.aesthetic import Aesthetic

PICTURES_PER_BATCH = 64  # in memory at a time
# Rates of families whose small text encoders need larger steps than the default for CLIP, 1e-4, to show any effect
FAMILY_RATES = {"tiny": 1e-3}


@freeze_models
@check_arguments()
def aesthetic_from(
    base: AnyBase,
    folder: str | os.PathLike[str],
    *,
    clip: str | os.PathLike[str] | None = None,
    name: str = "",
    **settings: object,
) -> Aesthetic:
    """Create an aesthetic gradient from the mean CLIP embedding of the pictures in a folder.

    Args:
        base: Base that the aesthetic is for.
        folder: Folder of pictures; those in 10_NAME/ count ten times, captions are not needed.
        clip: Folder of the CLIP model that the base's text encoder is part of. By default the tiny base's own, or one
            in the Hugging Face cache.
        name: Name on the card.
        settings: Settings of the aesthetic: steps, rate, blend, text, text_angle, text_negative.

    Returns:
        An overlay that shifts prompts towards the pictures; save it with `velatura.save`.

    Raises:
        BadDataset: The folder is missing, or has no pictures, or one that cannot be read.
        UnsupportedBase: No CLIP of the width of the base's text encoder is at hand.
        BadOverlay: A setting is unknown or out of range.
    """
    base = to_base(base)
    examples = read_dataset(folder, needs_captions=False).examples
    clip_encoder = open_clip_model(clip or find_clip_for(base.text.encoders[0].width))
    weighted_vectors = list[Tensor]()
    count = sum(example.repeats for example in examples)
    with gather_warnings():
        for start in range(0, len(examples), PICTURES_PER_BATCH):
            batch = examples[start : start + PICTURES_PER_BATCH]
            vectors = clip_encoder.encode_images([read_upright(example.path) for example in batch])
            for example, vector in zip(batch, vectors, strict=True):
                weighted_vectors.append(vector * (example.repeats / count))
    family_rate = {"rate": FAMILY_RATES[base.family.name]} if base.family.name in FAMILY_RATES else {}
    aesthetic = Aesthetic.from_vector(
        torch.stack(weighted_vectors).sum(dim=0), clip_encoder.text_projection, name=name, **(family_rate | settings)
    )
    aesthetic.card = aesthetic.card.replace(family=base.family.name, base=base.name, base_hash=base.hash)
    return aesthetic
