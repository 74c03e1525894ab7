"""Pictures as VAE latents: the mean of the VAE's distribution, or samples from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor

from velatura.base.base import Base
from velatura.datasets.boxes import ImageSize
from velatura.datasets.folder import Example
from velatura.datasets.pictures import read_upright
from velatura.errors import gather_warnings
from velatura.training.data.encoding_cache import EncodingCache, cache_key, fingerprint_models
from velatura.training.noise import derive_seed
from velatura.training.plan import LatentSamplingMode


@dataclass(frozen=True)
class Latents:
    """Latents of pictures.

    Attributes:
        values: Means or samples, (pictures, 4, height / 8, width / 8).
        deviations: Standard deviations of the same shape if every step samples anew, else None.
    """

    values: Tensor
    deviations: Tensor | None = None


@torch.no_grad()
@gather_warnings()
def encode_pictures(
    base: Base,
    examples: Sequence[Example],
    size: ImageSize,
    encoding_cache: EncodingCache,
    *,
    sampling: LatentSamplingMode = "mean",
    seed: int = 0,
    on_picture: Callable[[], None] | None = None,
) -> Latents:
    """Encode pictures with the base's VAE, one at a time, so that none depends on the others.

    Args:
        base: Its VAE encodes.
        examples: Pictures; those that repeat are encoded once.
        size: (width, height) in pixels that pictures are cropped to.
        encoding_cache: Keeps means and deviations on disk.
        sampling: "mean" for the means, "once" for one sample per picture, "draw" for a new sample at every step.
        seed: Seed of the samples of "once".
        on_picture: Called after each picture that is encoded or found in the cache.
    """
    vae_fingerprint = fingerprint_models([base.vae])
    distributions: dict[tuple[Path, bool], tuple[str, Tensor, Tensor]] = {}
    for example in examples:
        picture = example.path, example.is_mirrored
        if picture not in distributions:
            distributions[picture] = _distribution(base, example, size, encoding_cache, vae_fingerprint)
            if on_picture:
                on_picture()
    moments = [distributions[example.path, example.is_mirrored] for example in examples]
    means = torch.stack([mean for _, mean, _ in moments])
    deviations = torch.stack([deviation for _, _, deviation in moments])
    if sampling == "draw":
        return Latents(means, deviations)
    if sampling == "once":
        noise = torch.stack([_noise(seed, content, means.shape[1:]) for content, _, _ in moments])
        return Latents(means + deviations * noise.to(means.device))
    return Latents(means)


def encode_edited_images(
    base: Base, examples: Sequence[Example], size: ImageSize, encoding_cache: EncodingCache
) -> Tensor | None:
    """Encode what pictures were before an edit, as a pix2pix UNet reads it.

    Args:
        base: Its VAE encodes; see `velatura.base.image_condition.edit_condition`.
        examples: Pictures; one that has no picture before it gets zeros, as if there was no image.
        size: (width, height) in pixels that pictures are cropped to.
        encoding_cache: Keeps means and deviations on disk.

    Returns:
        (pictures, 4, height / 8, width / 8), or None if the base reads no image to edit, or no picture has one.
    """
    befores = [replace(example, path=example.before) for example in examples if example.before is not None]
    if base.image_condition != "pix2pix" or not befores:
        return None
    latents = iter(encode_pictures(base, befores, size, encoding_cache).values / base.family.scaling_factor)
    encoded = [None if example.before is None else next(latents) for example in examples]
    blank = torch.zeros_like(next(latent for latent in encoded if latent is not None))
    return torch.stack([blank if latent is None else latent for latent in encoded])


def _distribution(
    base: Base, example: Example, size: ImageSize, encoding_cache: EncodingCache, vae_fingerprint: str | None
) -> tuple[str, Tensor, Tensor]:
    """Return a hash of a picture, and the mean and standard deviation of its latents."""
    content = hashlib.blake2b(example.path.read_bytes(), digest_size=16).hexdigest()
    if example.is_mirrored:
        content = hashlib.blake2b(f"mirrored {content}".encode(), digest_size=16).hexdigest()
    inputs = {"picture": content, "size": size, "pillow": PIL.__version__, "scale": base.family.scaling_factor}

    def make() -> dict[str, Tensor]:
        mean, deviation = base.encode_moments(load_pixels(example, size).unsqueeze(0).to(base.device))
        return {"mean": mean[0], "deviation": deviation[0]}

    tensors = encoding_cache.get_or_make(cache_key(inputs, vae_fingerprint), make)
    return content, tensors["mean"].to(base.device), tensors["deviation"].to(base.device)


def load_pixels(example: Example, size: ImageSize) -> Tensor:
    """Return the middle of a picture or of its mirror image, (3, height, width), from -1 to 1."""
    picture = ImageOps.fit(read_upright(example.path), size, Image.Resampling.LANCZOS)
    picture = ImageOps.mirror(picture) if example.is_mirrored else picture
    return (torch.tensor(np.asarray(picture, dtype=np.float32)) / 127.5 - 1).permute(2, 0, 1)


def _noise(seed: int, content: str, shape: Sequence[int]) -> Tensor:
    """Return noise that depends only on the seed and the picture, not on its place in the folder."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "latents once", int(content, 16)))
    return torch.randn(tuple(shape), generator=generator)
