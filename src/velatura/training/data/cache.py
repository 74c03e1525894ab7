"""What of a folder of pictures does not change while an overlay trains: computed once, kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.datasets.boxes import ImageSize
from velatura.datasets.folder import Dataset, Example
from velatura.datasets.loss_weights import loss_weights
from velatura.datasets.templates import CaptionTemplate
from velatura.overlays.overlay import Overlay
from velatura.training.data.buckets import group_by_size
from velatura.training.data.captions import CaptionConditioning, caption_name
from velatura.training.data.encoding_cache import EncodingCache
from velatura.training.data.latents import LatentSampler, encode_pictures
from velatura.training.noise import derive_seed
from velatura.training.plan import PictureShape, Plan


@dataclass(frozen=True)
class DatasetCache:
    """The pictures as latents (pictures, 4, height, width), and what is said of them.

    deviations: of the latents, in the same shape, where each step draws its own; None where they are the same at each.
    weights: (pictures, 1, height, width) of mean 1, how much each place counts; None where all count alike. classes:
    pictures of what the base is to keep as it is, learned from beside the others, see class_pictures.py. others: the
    pictures of other sizes; this one has those of the most common size.
    """

    latents: Tensor
    captions: CaptionConditioning
    weights: Tensor | None = None
    class_images: DatasetCache | None = None
    deviations: Tensor | None = None
    other_buckets: tuple[DatasetCache, ...] = ()

    @property
    def buckets(self) -> tuple[DatasetCache, ...]:
        """The pictures of each size."""
        return self, *self.other_buckets

    @property
    def picture_count(self) -> int:
        """How many pictures there are of all sizes."""
        return sum(len(bucket.latents) for bucket in self.buckets)

    def draw_latents(self, pictures: Tensor, seed: int, offset: int) -> Tensor:
        """The latents of pictures (batch,) as they are learned from; first: how many were learned from before these."""
        indices = pictures.to(self.latents.device)
        if self.deviations is None:
            return self.latents[indices]
        generators = [
            torch.Generator().manual_seed(derive_seed(seed, "latents", offset + row)) for row in range(len(indices))
        ]
        noise = torch.stack([torch.randn(self.latents.shape[1:], generator=generator) for generator in generators])
        return self.latents[indices] + self.deviations[indices] * noise.to(self.latents.device)

    @property
    def conditioning(self) -> Conditioning:
        """What the captions say, see Speech.fixed."""
        return self.captions.encode_fixed()


@torch.no_grad()
def encode_examples(
    base: Base,
    examples: Sequence[Example],
    pixels: int,
    *,
    masks: bool = True,
    template: CaptionTemplate | None = None,
    trains_text: bool = False,
    sampling: LatentSampler = "mean",
    seed: int = 0,
    encoding_cache: EncodingCache | None = None,
    shape: PictureShape = "square",
) -> DatasetCache:
    """Encode every picture and caption: what the VAE says, and what the same words say in a prompt.

    masks: let masks and alpha channels say which places count. wording: what is made of the captions; says_anew:
    whether words come to say something else as the overlay learns. sampling: what of the VAE's distribution is learned,
    see encode_pictures. encodings: where both are kept between runs. shape: one size, or the nearest of several.
    """
    cache = encoding_cache or EncodingCache()

    def encode_bucket(size: ImageSize, bucket: Sequence[Example]) -> DatasetCache:
        latents = encode_pictures(base, bucket, size, cache, sampling=sampling, seed=seed)
        weights = _mask_weights(bucket, size, latents.values) if masks else None
        captions = CaptionConditioning(
            base.text, [example.caption for example in bucket], template, trains_text=trains_text, encoding_cache=cache
        )
        return DatasetCache(latents.values, captions, weights, deviations=latents.deviations)

    largest, *other_buckets = (
        encode_bucket(size, bucket) for size, bucket in group_by_size(examples, pixels, shape).items()
    )
    cache.trim()
    return replace(largest, other_buckets=tuple(other_buckets))


def _mask_weights(examples: Sequence[Example], size: ImageSize, latents: Tensor) -> Tensor | None:
    height, width = latents.shape[-2:]
    weights_by_path = {
        example.path: loss_weights(example, size, (width, height)) for example in dict.fromkeys(examples)
    }
    weights = [weights_by_path[example.path] for example in examples]
    if all(weight is None for weight in weights):
        return None
    uniform = torch.ones(latents.shape[-2:])
    return torch.stack([uniform if weight is None else weight for weight in weights]).unsqueeze(1).to(latents.device)


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
    return replace(cache, class_images=encode(class_pictures)) if class_pictures and plan.class_weight else cache
