"""Pictures of several shapes in one training: each in the size nearest to its own, batches of one size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor

from velatura.datasets.boxes import Size, bucket_sizes, nearest_size
from velatura.datasets.folder import Example
from velatura.datasets.pictures import opened
from velatura.training.chance import seed_of
from velatura.training.plan import Shape


def sorted_by_size(examples: Sequence[Example], pixels: int, shape: Shape) -> dict[Size, list[Example]]:
    """The pictures by the size (width, height) that they are cut to, the size of most pictures first."""
    if shape == "square":
        return {(pixels, pixels): list(examples)}
    sizes = bucket_sizes(pixels)
    nearest = {path: nearest_size(_size(path), sizes) or (pixels, pixels) for path in {each.path for each in examples}}
    found: dict[Size, list[Example]] = {}
    for example in examples:
        found.setdefault(nearest[example.path], []).append(example)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def batch_at(seed: int, step: int, counts: Sequence[int], batch_size: int) -> tuple[int, list[int]]:
    """Which of the sizes, with so many pictures each, a step takes, and which of its pictures.

    In a round all pictures are seen, in batches of one size and in a shuffled order; what is missing from the last
    batch of a size is taken from its first.
    """
    batches = [-(-count // batch_size) for count in counts]
    number, place = divmod(step, sum(batches))
    order = _shuffled(seed_of(seed, "batches", number), sum(batches))
    chosen = int(order[place])
    bucket = 0
    while chosen >= batches[bucket]:
        chosen -= batches[bucket]
        bucket += 1
    pictures = _shuffled(seed_of(seed, f"bucket {bucket}", number), counts[bucket])
    places = range(chosen * batch_size, (chosen + 1) * batch_size)
    return bucket, [int(pictures[each % counts[bucket]]) for each in places]


@lru_cache(maxsize=64)
def _shuffled(seed: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _size(path: Path) -> Size:
    with opened(path) as image:
        return ImageOps.exif_transpose(image).size
