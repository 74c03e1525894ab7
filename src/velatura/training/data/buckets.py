"""Aspect ratio buckets: every picture is cropped to the nearest of several sizes, and a batch has one size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from velatura.datasets.boxes import ImageSize, bucket_sizes, nearest_size
from velatura.datasets.folder import Example
from velatura.datasets.pictures import open_picture, upright_size
from velatura.training.noise import derive_seed
from velatura.training.plan import PictureShape


def group_by_size(examples: Sequence[Example], pixels: int, shape: PictureShape) -> dict[ImageSize, list[Example]]:
    """Return the pictures by the size (width, height) that they are cropped to, the most common size first.

    Mirror images do not count for that, so that the validation pictures are the same with them and without.

    Args:
        examples: Pictures, which may repeat.
        pixels: Side of the square, or the root of a bucket's largest area.
        shape: "square" for one bucket, or "buckets".
    """
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
    counts = {size: sum(not example.is_mirrored for example in bucket) for size, bucket in examples_by_size.items()}
    return {size: examples_by_size[size] for size in sorted(counts, key=lambda size: (-counts[size], size))}


def draw_bucket_batch(seed: int, step: int, counts: Sequence[int], batch_size: int) -> tuple[int, list[int]]:
    """Draw the bucket of a batch, and the pictures from it.

    In an epoch every picture is drawn, in batches of one size and in random order. The last batch of a bucket is filled
    up with pictures of its first.

    Args:
        seed: Seed of the run.
        step: Number of batches drawn before.
        counts: Number of pictures in each bucket.
        batch_size: Number of pictures in a batch.

    Returns:
        Index of the bucket, and indices of pictures in it.
    """
    batch_counts = [-(-count // batch_size) for count in counts]
    epoch, position = divmod(step, sum(batch_counts))
    order = _permutation(derive_seed(seed, "batches", epoch), sum(batch_counts))
    batch_index = int(order[position])
    bucket = 0
    while batch_index >= batch_counts[bucket]:
        batch_index -= batch_counts[bucket]
        bucket += 1
    pictures = _permutation(derive_seed(seed, f"bucket {bucket}", epoch), counts[bucket])
    positions = range(batch_index * batch_size, (batch_index + 1) * batch_size)
    return bucket, [int(pictures[position % counts[bucket]]) for position in positions]


@lru_cache(maxsize=64)
def _permutation(seed: int, count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def _picture_size(path: Path) -> ImageSize:
    with open_picture(path) as image:
        return upright_size(image)
