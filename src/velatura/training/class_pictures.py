"""Pictures of a subject's whole class, by which the base keeps what it knows of it: prior preservation.

Ruiz et al. 2022, DreamBooth, section 3.3. They lie in the folder reg/ among the pictures, whoever made them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from velatura.base.base import Base
from velatura.datasets.folder import Dataset, Example
from velatura.overlays.overlay import Overlay
from velatura.training.cache import DatasetCache, encode_examples
from velatura.training.encodings import EncodingCache
from velatura.training.plan import Plan
from velatura.training.speech import caption_name


def class_examples(dataset: Dataset) -> list[Example]:
    """The class pictures of a dataset, each as often as it counts."""
    return [example for example in dataset.regularisation for _ in range(example.repeats)]


def encode_dataset(base: Base, overlay: Overlay, dataset: Dataset, plan: Plan) -> DatasetCache:
    """All pictures as they are learned from; class pictures are the cache's `classes`, where there are any.

    Those keep their captions: sentences of a template would call them by the name of what is learned.
    """
    encode = partial(
        encode_examples,
        base,
        pixels=plan.pixels or base.family.default_pixels,
        masks=plan.masks,
        trains_text="text" in overlay.target_parts,
        sampling=plan.latents,
        seed=plan.seed,
        encoding_cache=EncodingCache.open_default() if plan.cache else EncodingCache(),
        shape=plan.shape,
    )
    cache = encode(dataset.repeat_examples(), template=plan.caption_template(caption_name(overlay)))
    class_pictures = class_examples(dataset)
    return replace(cache, classes=encode(class_pictures)) if class_pictures and plan.class_weight else cache
