"""Pictures of a subject's whole class, by which the base keeps what it knows of it: prior preservation.

Ruiz et al. 2022, DreamBooth, section 3.3. They lie in the folder reg/ among the pictures, whoever made them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from velatura.base.base import Base
from velatura.datasets.folder import Dataset, Example
from velatura.overlays.overlay import Overlay
from velatura.training.cache import Cache, encode_examples
from velatura.training.encodings import Encodings
from velatura.training.plan import Plan
from velatura.training.speech import name_of


def class_examples(dataset: Dataset) -> list[Example]:
    """The class pictures of a dataset, each as often as it counts."""
    return [example for example in dataset.regularising for _ in range(example.repeats)]


def encode_lessons(base: Base, overlay: Overlay, dataset: Dataset, plan: Plan) -> Cache:
    """All pictures as they are learned from; class pictures are the cache's `classes`, where there are any.

    Those keep their captions: sentences of a template would call them by the name of what is learned.
    """
    encode = partial(
        encode_examples,
        base,
        pixels=plan.pixels or base.family.default_pixels,
        masks=plan.masks,
        says_anew="text" in overlay.touches,
        sampling=plan.latents,
        seed=plan.seed,
        encodings=Encodings.kept() if plan.cache else Encodings(),
        shape=plan.shape,
    )
    cache = encode(dataset.repeated(), wording=plan.wording(name_of(overlay)))
    classes = class_examples(dataset)
    return replace(cache, classes=encode(classes)) if classes and plan.class_weight else cache
