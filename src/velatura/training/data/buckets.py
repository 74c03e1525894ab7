"""Pictures of several shapes in one training: each in the size nearest to its own, batches of one size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor

from velatura.datasets.boxes import ImageSize, bucket_sizes, nearest_size
from velatura.datasets.folder import Example
from velatura.datasets.pictures import open_picture
from velatura.training.noise import derive_seed
from velatura.training.plan import PictureShape


def group_by_size(examples: Sequence[Example], pixels: int, shape: PictureShape) -> dict[ImageSize, list[Example]]:
    """The pictures by the size (width, height) that they are cut to, the size of most pictures first."""
    if shape == "square":
        return {(pixels, pixels): list(examples)}
    sizes = bucket_sizes(pixels)
    nearest = {
        path: nearest_size(_picture_size(path), sizes) or (pixels, pixels)
        for path in {example.path for example in examples}
    }
    examples_by_size: dict[ImageSize, list[Example]] = {}
    for example in examples:
        examples_by_size.setdefault(nearest[example.path], []).append(example)
    return dict(sorted(examples_by_size.items(), key=lambda item: (-len(item[1]), item[0])))


def draw_bucket_batch(seed: int, step: int, counts: Sequence[int], batch_size: int) -> tuple[int, list[int]]:
    """Which of the sizes, with so many pictures each, a step takes, and which of its pictures.

    In a round all pictures are seen, in batches of one size and in a shuffled order; what is missing from the last
    batch of a size is taken from its first.
    """
    batches = [-(-count // batch_size) for count in counts]
    epoch, position = divmod(step, sum(batches))
    order = _permutation(derive_seed(seed, "batches", epoch), sum(batches))
    batch_index = int(order[position])
    bucket = 0
    while batch_index >= batches[bucket]:
        batch_index -= batches[bucket]
        bucket += 1
    pictures = _permutation(derive_seed(seed, f"bucket {bucket}", epoch), counts[bucket])
    positions = range(batch_index * batch_size, (batch_index + 1) * batch_size)
    return bucket, [int(pictures[position % counts[bucket]]) for position in positions]


@lru_cache(maxsize=64)
def _permutation(seed: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _picture_size(path: Path) -> ImageSize:
    with open_picture(path) as image:
        return ImageOps.exif_transpose(image).size
