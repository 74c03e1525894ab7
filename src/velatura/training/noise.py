"""Random draws of a training step: pictures, timesteps, noise, dropped captions.

All are functions of the seed and the step, so a run that is stopped and resumed ends with the same weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class TrainingBatch:
    """Random draws for one batch.

    Attributes:
        pictures: Indices of pictures, (batch,).
        timesteps: (batch,).
        noise: Target noise, (batch, channels, height, width).
        captionless: True where the caption is dropped, (batch,).
        input_noise: Noise to add to the latents, where it differs from `noise`.
        offset: Number of pictures drawn in earlier batches.
    """

    pictures: Tensor
    timesteps: Tensor
    noise: Tensor
    captionless: Tensor
    input_noise: Tensor | None = None
    offset: int = 0

    def select_rows(self, rows: slice) -> TrainingBatch:
        """Return the part of the batch for one of several processes."""
        return TrainingBatch(
            pictures=self.pictures[rows],
            timesteps=self.timesteps[rows],
            noise=self.noise[rows],
            captionless=self.captionless[rows],
            input_noise=None if self.input_noise is None else self.input_noise[rows],
            offset=self.offset + rows.start,
        )


def draw_batch(
    seed: int,
    step: int,
    *,
    batch_size: int,
    picture_count: int,
    latent_shape: torch.Size,
    timestep_count: int = 1000,
    timestep_bias: float = 1.0,
    caption_dropout: float = 0.0,
    noise_offset: float = 0.0,
    pyramid_noise: float = 0.0,
    input_perturbation: float = 0.0,
    pictures: Sequence[int] | None = None,
) -> TrainingBatch:
    """Draw a batch on the CPU, where every machine draws the same numbers.

    Every picture is drawn once before any is drawn again, whether or not the batch size divides the number of
    pictures. Timesteps are uniform, independent of the pictures and stratified: one from each of `batch_size` equal
    slices, which reduces the variance of the loss at no cost (Kingma et al. 2021, Variational Diffusion Models, I.1).

    Args:
        seed: Seed of the run.
        step: Number of batches drawn before.
        batch_size: Number of pictures in the batch.
        picture_count: Number of pictures to draw from.
        latent_shape: (channels, height, width) of one picture's latents.
        timestep_count: Number of timesteps of the noise schedule.
        timestep_bias: Power that favours noisy timesteps; 1 leaves them uniform, 3 is the cubic sampling of Mou et al.
            2023, T2I-Adapter, section 3.3.
        caption_dropout: Share of captions to drop, 0 to 1.
        noise_offset: Strength of offset noise.
        pyramid_noise: Discount of multi-resolution noise, 0 for none.
        input_perturbation: Strength of extra noise in the input.
        pictures: Indices of the batch's pictures where they are drawn elsewhere, see buckets.py.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "step", step))
    strata = torch.randperm(batch_size, generator=generator) + torch.rand(batch_size, generator=generator)
    positions = strata * timestep_count / batch_size
    if timestep_bias != 1:
        positions = timestep_count * (1 - (1 - positions / timestep_count) ** timestep_bias)
    timesteps = positions.long().clamp(max=timestep_count - 1)
    noise = torch.randn((batch_size, *latent_shape), generator=generator)

    if pyramid_noise:
        noise = _add_pyramid_noise(noise, pyramid_noise, _create_generator(seed, "pyramid", step))
    if noise_offset:  # Guttenberg 2023, Diffusion with Offset Noise: plain noise hardly changes a picture's mean
        offset_shape = (batch_size, latent_shape[0], 1, 1)
        noise = noise + noise_offset * torch.randn(offset_shape, generator=_create_generator(seed, "offset", step))
    input_noise = None
    if input_perturbation:  # Ning et al. 2023, Input Perturbation Reduces Exposure Bias: imitates sampling errors
        perturbation = torch.randn(noise.shape, generator=_create_generator(seed, "perturbation", step))
        input_noise = noise + input_perturbation * perturbation

    offset = step * batch_size
    if pictures is None:
        pictures = [_picture_at(seed, position, picture_count) for position in range(offset, offset + batch_size)]
    captionless = torch.rand(batch_size, generator=_create_generator(seed, "caption", step)) < caption_dropout
    return TrainingBatch(torch.tensor(pictures), timesteps, noise, captionless, input_noise, offset)


def derive_seed(seed: int, purpose: str, number: int) -> int:
    """Return a seed for one purpose and number, unrelated to the seeds of all other purposes and numbers."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {purpose} {number}".encode(), digest_size=8).digest())


def _create_generator(seed: int, purpose: str, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, purpose, number))


def _add_pyramid_noise(noise: Tensor, discount: float, generator: torch.Generator) -> Tensor:
    """Add enlarged noise of smaller sizes, each level weaker by the discount, and scale each picture to variance 1.

    Whitaker 2023, Multi-Resolution Noise for Diffusion Model Training: sides shrink by a random 2 to 4 at each level,
    down to 1. As there, the full size counts twice, so that a discount means the same.

    Args:
        noise: (batch, channels, height, width).
        discount: Factor on each smaller level, 0 to 1.
        generator: Source of the smaller noises.
    """
    noise, shape = noise * math.sqrt(2), noise.shape
    weight, level = 1.0, 0
    while min(shape[-2:]) > 1:
        level += 1
        ratio = (2 + 2 * torch.rand(1, generator=generator).item()) ** level
        shape = (*noise.shape[:2], *(max(1, int(side / ratio)) for side in noise.shape[-2:]))
        weight *= discount
        coarse = torch.randn(shape, generator=generator)
        noise = noise + weight * F.interpolate(coarse, noise.shape[-2:], mode="bilinear", align_corners=False)
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)


def _picture_at(seed: int, position: int, picture_count: int) -> int:
    """Return the picture at a position in the endless sequence of shuffled epochs."""
    epoch, index = divmod(position, picture_count)
    return int(_shuffle_epoch(seed, epoch, picture_count)[index])


@lru_cache(maxsize=2)
def _shuffle_epoch(seed: int, epoch: int, picture_count: int) -> Tensor:
    return torch.randperm(picture_count, generator=_create_generator(seed, "round", epoch))


def isolate_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's global random state afterwards, so that the caller's own draws are not affected."""
    devices = [device] if device.type == "cuda" else []
    return cast(
        "AbstractContextManager[None]",
        torch.random.fork_rng(devices),  # pyright: ignore[reportUnknownMemberType]
    )
