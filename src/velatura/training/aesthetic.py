"""Aesthetics from folders: nothing is trained, CLIP looks at the pictures once."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.datasets.folder import read_dataset
from velatura.datasets.pictures import read_upright
from velatura.formats.clip import clip_beside, open_clip
from velatura.overlays.aesthetic import Aesthetic

AT_ONCE = 64  # pictures in memory
RATES = {"tiny": 1e-3}  # of families whose small towers need longer steps than CLIP's 1e-4 to show anything


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
    eye = open_clip(clip or clip_beside(base.text.towers[0].width))
    weighed, count = list[Tensor](), sum(example.repeats for example in examples)
    for first in range(0, len(examples), AT_ONCE):
        some = examples[first : first + AT_ONCE]
        vectors = eye.look([read_upright(example.path) for example in some])
        for example, vector in zip(some, vectors, strict=True):
            weighed.append(vector * (example.repeats / count))
    rate = {"rate": RATES[base.family.name]} if base.family.name in RATES else {}
    made = Aesthetic.of(torch.stack(weighed).sum(dim=0), eye.projection, name=name, **(rate | settings))
    made.card = made.card.but(family=base.family.name, base=base.name, base_hash=base.hash)
    return made
