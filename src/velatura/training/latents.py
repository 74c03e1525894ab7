"""Pictures as the autoencoder tells of them: a distribution of latents each, of which the mean is learned or a draw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from torch import Tensor

from velatura.base.base import Base
from velatura.datasets.boxes import Size
from velatura.datasets.folder import Example
from velatura.datasets.pictures import read_upright
from velatura.training.chance import seed_of
from velatura.training.encodings import Encodings, fingerprint_of, key_of

Sampling = Literal["mean", "once", "draw"]


@dataclass(frozen=True)
class Latents:
    """Latents (pictures, 4, height, width); deviations are theirs, of the same shape, where each step draws anew."""

    values: Tensor
    deviations: Tensor | None = None


@torch.no_grad()
def encode_pictures(
    base: Base,
    examples: Sequence[Example],
    size: Size,
    encodings: Encodings,
    *,
    sampling: Sampling = "mean",
    seed: int = 0,
) -> Latents:
    """Encode pictures, cut to a size (width, height): each alone, so that none depends on the others, and each once.

    sampling: whether the means are learned, one draw that a picture keeps, or a new draw at every step.
    """
    made_by = fingerprint_of([base.vae])
    distributions: dict[str, tuple[str, Tensor, Tensor]] = {}
    for example in examples:
        if str(example.path) not in distributions:
            distributions[str(example.path)] = _distribution(base, example, size, encodings, made_by)
    found = [distributions[str(example.path)] for example in examples]
    means, deviations = torch.stack([mean for _, mean, _ in found]), torch.stack([each for _, _, each in found])
    if sampling == "draw":
        return Latents(means, deviations)
    if sampling == "once":
        noise = torch.stack([_noise(seed, content, means.shape[1:]) for content, _, _ in found])
        return Latents(means + deviations * noise.to(means.device))
    return Latents(means)


def _distribution(
    base: Base, example: Example, size: Size, encodings: Encodings, made_by: str | None
) -> tuple[str, Tensor, Tensor]:
    """A hash of a picture's content, and its mean and deviation."""
    content = hashlib.blake2b(example.path.read_bytes(), digest_size=16).hexdigest()
    what = {"picture": content, "size": size, "pillow": PIL.__version__, "scale": base.family.latent_scale}

    def make() -> dict[str, Tensor]:
        mean, deviation = base.encode_moments(pixels_of(example, size).unsqueeze(0).to(base.device))
        return {"mean": mean[0], "deviation": deviation[0]}

    found = encodings.recall(key_of(what, made_by), make)
    return content, found["mean"].to(base.device), found["deviation"].to(base.device)


def pixels_of(example: Example, size: Size) -> Tensor:
    """The middle of a picture as the VAE wants it: (3, height, width), from -1 to 1."""
    picture = ImageOps.fit(read_upright(example.path), size, Image.Resampling.LANCZOS)
    return (torch.tensor(np.asarray(picture, dtype=np.float32)) / 127.5 - 1).permute(2, 0, 1)


def _noise(seed: int, content: str, shape: Sequence[int]) -> Tensor:
    """What a picture keeps, wherever in the folder it lies."""
    chance = torch.Generator().manual_seed(seed_of(seed, "latents once", int(content, 16)))
    return torch.randn(tuple(shape), generator=chance)
