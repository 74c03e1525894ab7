"""What chance decides at a step, as a function of the seed and the step: so a run can stop, go on and end the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """What one step trains on: which pictures (batch,), at which timesteps (batch,), under which noise.

    captionless: (batch,), whether a picture's caption is left out; mixed: the noise that pictures are mixed with, where
    it is not just the one that is to be told; first: how many pictures were drawn before these.
    """

    pictures: Tensor
    timesteps: Tensor
    noise: Tensor
    captionless: Tensor
    mixed: Tensor | None = None
    first: int = 0

    def part(self, rows: slice) -> Draw:
        """What one of several processes trains on."""
        mixed = None if self.mixed is None else self.mixed[rows]
        inner = (each[rows] for each in (self.pictures, self.timesteps, self.noise, self.captionless))
        return Draw(*inner, mixed=mixed, first=self.first + rows.start)


def draw(
    seed: int,
    step: int,
    *,
    batch_size: int,
    picture_count: int,
    latent_shape: torch.Size,
    timestep_count: int = 1000,
    caption_dropout: float = 0.0,
    noise_offset: float = 0.0,
    pyramid_noise: float = 0.0,
    input_perturbation: float = 0.0,
    pictures: Sequence[int] | None = None,
) -> Draw:
    """Draw the step that is taken when `step` steps are done, on the CPU, where every machine draws the same.

    Every picture is seen once before any is seen again, however batches and the number of pictures divide. Timesteps
    are uniform and independent of the pictures, but stratified: one from each of batch_size equal slices, which makes
    the loss less noisy at no cost (Kingma et al. 2021, Variational Diffusion Models, I.1). pictures: the batch's,
    where they are of several sizes, see buckets.py.
    """
    chance = torch.Generator().manual_seed(seed_of(seed, "step", step))
    slices = torch.randperm(batch_size, generator=chance) + torch.rand(batch_size, generator=chance)
    timesteps = (slices * timestep_count / batch_size).long().clamp(max=timestep_count - 1)
    noise = torch.randn((batch_size, *latent_shape), generator=chance)
    if pyramid_noise:
        noise = _with_coarser(noise, pyramid_noise, torch.Generator().manual_seed(seed_of(seed, "pyramid", step)))
    if noise_offset:  # Guttenberg 2023, Diffusion with Offset Noise: else the mean of a picture is hardly noised
        shifts = torch.Generator().manual_seed(seed_of(seed, "offset", step))
        noise = noise + noise_offset * torch.randn((batch_size, latent_shape[0], 1, 1), generator=shifts)
    first = step * batch_size
    places = range(first, first + batch_size)
    chosen = [_picture(seed, place, picture_count) for place in places] if pictures is None else pictures
    captions = torch.Generator().manual_seed(seed_of(seed, "caption", step))
    captionless = torch.rand(batch_size, generator=captions) < caption_dropout
    mixed = None
    if input_perturbation:  # Ning et al. 2023, Input Perturbation Reduces Exposure Bias, which adds up while sampling
        more = torch.Generator().manual_seed(seed_of(seed, "perturbation", step))
        mixed = noise + input_perturbation * torch.randn(noise.shape, generator=more)
    return Draw(torch.tensor(chosen), timesteps, noise, captionless, mixed, first)


def seed_of(seed: int, what: str, number: int) -> int:
    """A seed of its own for one use of chance: unrelated to those of other numbers and other uses."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {what} {number}".encode(), digest_size=8).digest())


def _with_coarser(noise: Tensor, discount: float, chance: torch.Generator) -> Tensor:
    """Noise with enlarged smaller noises added, each weaker by the discount, then each picture brought to variance 1.

    Whitaker 2023, Multi-Resolution Noise for Diffusion Model Training: sides shrink by 2 to 4 for each, down to 1. As
    there, the full size counts twice, so that a discount means the same. noise: (batch, channels, height, width).
    """
    noise, shape, share, level = noise * math.sqrt(2), noise.shape, 1.0, 0
    while min(shape[-2:]) > 1:
        level += 1
        shrunk = (2 + 2 * torch.rand(1, generator=chance).item()) ** level
        shape = (*noise.shape[:2], *(max(1, int(side / shrunk)) for side in noise.shape[-2:]))
        share *= discount
        coarse = torch.randn(shape, generator=chance)
        noise = noise + share * F.interpolate(coarse, noise.shape[-2:], mode="bilinear", align_corners=False)
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)


def _picture(seed: int, place: int, picture_count: int) -> int:
    """The picture at a place of the endless row of shuffled rounds."""
    number, index = divmod(place, picture_count)
    return int(_shuffled_round(seed, number, picture_count)[index])


@lru_cache(maxsize=2)
def _shuffled_round(seed: int, number: int, picture_count: int) -> Tensor:
    chance = torch.Generator().manual_seed(seed_of(seed, "round", number))
    return torch.randperm(picture_count, generator=chance)
