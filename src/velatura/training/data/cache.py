"""Encoded dataset in memory: latents, captions and loss weights, computed once before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.datasets.boxes import ImageSize
from velatura.datasets.crop import LEFT_OR_RIGHT
from velatura.datasets.folder import Dataset, Example
from velatura.datasets.loss_weights import loss_weights
from velatura.datasets.templates import CaptionTemplate
from velatura.errors import choose_number, gather_warnings, quantity, warn
from velatura.overlays.overlay import Overlay
from velatura.training.data.buckets import group_by_size
from velatura.training.data.captions import CaptionConditioning, caption_name
from velatura.training.data.encoding_cache import EncodingCache
from velatura.training.data.latents import encode_edited_images, encode_pictures
from velatura.training.noise import derive_seed
from velatura.training.plan import LatentSamplingMode, PictureShape, Plan


@dataclass(frozen=True)
class DatasetCache:
    """Encoded pictures of one size, with those of other sizes and the class pictures attached.

    Attributes:
        latents: Pictures of the most common size, (pictures, 4, height / 8, width / 8).
        captions: Conditioning of the same pictures.
        weights: Loss weights by position, (pictures, 1, height / 8, width / 8) of mean 1; None if all count alike.
        class_images: Class pictures for prior preservation, trained on beside the others; see kinds/class_images.py.
        deviations: Standard deviations of the latents if every step samples anew; None if latents are fixed.
        image_conditions: What a pix2pix UNet reads of the pictures before an edit, of the latents' shape; None if it
            reads no image.
        mirrored_count: How many of the pictures, the last ones, are mirror images of others.
        other_buckets: Pictures of the other sizes.
    """

    latents: Tensor
    captions: CaptionConditioning
    weights: Tensor | None = None
    class_images: DatasetCache | None = None
    deviations: Tensor | None = None
    image_conditions: Tensor | None = None
    mirrored_count: int = 0
    other_buckets: tuple[DatasetCache, ...] = ()

    @property
    def buckets(self) -> tuple[DatasetCache, ...]:
        """Return this cache and those of the other sizes."""
        return self, *self.other_buckets

    @property
    def picture_count(self) -> int:
        """Return the number of pictures of all sizes, without class pictures."""
        return sum(len(bucket.latents) for bucket in self.buckets)

    def draw_latents(self, pictures: Tensor, seed: int, offset: int) -> Tensor:
        """Return the latents of a batch, sampled from the VAE's distribution if `deviations` are there.

        Args:
            pictures: Indices of pictures, (batch,).
            seed: Seed of the samples.
            offset: Number of pictures trained on before this batch.
        """
        indices = pictures.to(self.latents.device)
        if self.deviations is None:
            return self.latents[indices]
        generators = [
            torch.Generator().manual_seed(derive_seed(seed, "latents", offset + row)) for row in range(len(indices))
        ]
        noise = torch.stack([torch.randn(self.latents.shape[1:], generator=generator) for generator in generators])
        return self.latents[indices] + self.deviations[indices] * noise.to(self.latents.device)

    def draw_image_conditions(self, pictures: Tensor, seed: int, offset: int, dropout: float) -> Tensor | None:
        """Return what a pix2pix UNet reads for a batch, zeros in place of a share of the images; None for no image.

        Args:
            pictures: Indices of pictures, (batch,).
            seed: Seed of the draws.
            offset: Number of pictures trained on before this batch.
            dropout: Share of images that are left out.
        """
        if self.image_conditions is None:
            return None
        seeds = [derive_seed(seed, "image", offset + row) for row in range(len(pictures))]
        draws = torch.stack([torch.rand((), generator=torch.Generator().manual_seed(row_seed)) for row_seed in seeds])
        conditions = self.image_conditions[pictures.to(self.image_conditions.device)]
        is_kept = (draws >= dropout).view(-1, 1, 1, 1).to(conditions.device)
        return torch.where(is_kept, conditions, torch.zeros_like(conditions))


@torch.no_grad()
@gather_warnings()
def encode_examples(
    base: Base,
    examples: Sequence[Example],
    pixels: int,
    *,
    masks: bool = True,
    template: CaptionTemplate | None = None,
    trains_text: bool = False,
    sampling: LatentSamplingMode = "mean",
    seed: int = 0,
    encoding_cache: EncodingCache | None = None,
    shape: PictureShape = "square",
    on_picture: Callable[[], None] | None = None,
) -> DatasetCache:
    """Encode pictures with the VAE and captions with the text encoders, as prompts are encoded.

    Args:
        base: Encodes pictures and captions.
        examples: Pictures; those that repeat count more often.
        pixels: Side of the square, or the root of a bucket's largest area.
        masks: Weight the loss by masks and alpha channels.
        template: Turns captions into texts.
        trains_text: Texts must be encoded at every step, because the overlay changes their encoding.
        sampling: Mean or samples of the VAE's distribution, see `encode_pictures`.
        seed: Seed of the samples.
        encoding_cache: Keeps encodings on disk between runs.
        shape: "square", or "buckets" for several sizes.
        on_picture: Called after each picture.
    """
    cache = encoding_cache or EncodingCache()

    def encode_bucket(size: ImageSize, bucket: Sequence[Example]) -> DatasetCache:
        latents = encode_pictures(base, bucket, size, cache, sampling=sampling, seed=seed, on_picture=on_picture)
        weights = _mask_weights(bucket, size, latents.values) if masks else None
        captions = CaptionConditioning(
            base.text, [example.caption for example in bucket], template, trains_text=trains_text, encoding_cache=cache
        )
        conditions = encode_edited_images(base, bucket, size, cache)
        return DatasetCache(
            latents.values,
            captions,
            weights,
            deviations=latents.deviations,
            image_conditions=conditions,
            mirrored_count=sum(example.is_mirrored for example in bucket),
        )

    largest, *other_buckets = (
        encode_bucket(size, bucket) for size, bucket in group_by_size(examples, pixels, shape).items()
    )
    cache.trim()
    return replace(largest, other_buckets=tuple(other_buckets))


def _mask_weights(examples: Sequence[Example], size: ImageSize, latents: Tensor) -> Tensor | None:
    height, width = latents.shape[-2:]
    weights_by_example = {example: loss_weights(example, size, (width, height)) for example in dict.fromkeys(examples)}
    weights = [weights_by_example[example] for example in examples]
    if all(weight is None for weight in weights):
        return None
    uniform = torch.ones(latents.shape[-2:])
    return torch.stack([uniform if weight is None else weight for weight in weights]).unsqueeze(1).to(latents.device)


def class_examples(dataset: Dataset) -> list[Example]:
    """Return the class pictures of a dataset, repeated as their folders say."""
    return [example for example in dataset.regularisation for _ in range(example.repeats)]


def mirrored_examples(examples: Sequence[Example]) -> list[Example]:
    """Return the mirror images of pictures, without those whose caption says left or right."""
    return [replace(example, is_mirrored=True) for example in examples if not LEFT_OR_RIGHT.search(example.caption)]


def training_examples(dataset: Dataset, plan: Plan) -> list[Example]:
    """Return every picture as often as it counts, and behind all of them the mirror images if the plan says flip."""
    examples = dataset.repeat_examples()
    return [*examples, *mirrored_examples(examples)] if plan.flip else examples


def encode_dataset(
    base: Base, overlay: Overlay, dataset: Dataset, plan: Plan, on_picture: Callable[[], None] | None = None
) -> DatasetCache:
    """Encode the pictures and class pictures of a dataset as the plan says.

    Class pictures keep their captions: a template would call them by the name of what is being learned. They are not
    mirrored.
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
        on_picture=on_picture,
    )
    _warn_of_several_lines(dataset.examples, plan)
    if plan.flip:
        _warn_of_sides(dataset.examples)
    cache = encode(training_examples(dataset, plan), template=plan.caption_template(caption_name(overlay)))
    class_pictures = class_examples(dataset)
    if class_pictures and plan.class_weight:
        return replace(cache, class_images=encode(class_pictures))
    return cache


def warn_of_pairs(base: Base, dataset: Dataset) -> None:
    """Warn of pictures before an edit that the base does not read, and of those that a pix2pix model lacks.

    Args:
        base: The base that an overlay is trained on.
        dataset: The pictures.
    """
    examples = dataset.examples
    alone = [example.path.name for example in examples if example.before is None]
    if base.image_condition != "pix2pix":
        if len(alone) < len(examples):
            count = len(examples) - len(alone)
            warn(
                f"{quantity(count, 'picture')} before an edit (before/) {choose_number(count, 'is', 'are')} not read: "
                f"{base.name} is not a "
                "pix2pix model, and learns the pictures after it alone"
            )
        return
    if alone:
        some = f"{quantity(len(alone), 'picture')}, as {alone[0]}, {choose_number(len(alone), 'does', 'do')} not have"
        found = "no picture has" if len(alone) == len(examples) else some
        warn(
            f"{base.name} is a pix2pix model, and {found} what it was before an edit beside it (before/NAME.png or "
            "NAME.before.png): the overlay is trained there without an image to edit (zeros)"
        )


def _warn_of_several_lines(examples: Sequence[Example], plan: Plan) -> None:
    """Warn of captions with several lines, which programs read differently, unless the plan says how."""
    paths = [example.path for example in examples if len(example.caption.splitlines()) > 1]
    if paths and "caption_lines" not in plan.model_fields_set:
        found = (
            f"the caption of {paths[0].name}" if len(paths) == 1 else f"{len(paths)} captions, as of {paths[0].name},"
        )
        verb = "has" if len(paths) == 1 else "have"
        warn(
            f"{found} {verb} several lines, which are learned as one text: to learn the first line, as kohya's scripts "
            "do, or a random line at each step, set caption_lines to first or random"
        )


def _warn_of_sides(examples: Sequence[Example]) -> None:
    """Warn of pictures that are not mirrored, because their captions would be wrong."""
    names = [example.path.name for example in examples if LEFT_OR_RIGHT.search(example.caption)]
    if names:
        found = f"the caption of {names[0]}" if len(names) == 1 else f"{len(names)} captions, as of {names[0]},"
        verb, those = ("says", "its picture is") if len(names) == 1 else ("say", "these pictures are")
        warn(f"{found} {verb} left or right, so {those} not mirrored (flip)")
