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
class TrainingBatch:
    """What one step trains on: which pictures (batch,), at which timesteps (batch,), under which noise.

    captionless: (batch,), whether a picture's caption is left out; mixed: the noise that pictures are mixed with, where
    it is not just the one that is to be told; first: how many pictures were drawn before these.
    """

    pictures: Tensor
    timesteps: Tensor
    noise: Tensor
    captionless: Tensor
    input_noise: Tensor | None = None
    offset: int = 0

    def select_rows(self, rows: slice) -> TrainingBatch:
        """What one of several processes trains on."""
        input_noise = None if self.input_noise is None else self.input_noise[rows]
        fields = (tensor[rows] for tensor in (self.pictures, self.timesteps, self.noise, self.captionless))
        return TrainingBatch(*fields, input_noise=input_noise, offset=self.offset + rows.start)


def draw_batch(
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
) -> TrainingBatch:
    """Draw the step that is taken when `step` steps are done, on the CPU, where every machine draws the same.

    Every picture is seen once before any is seen again, however batches and the number of pictures divide. Timesteps
    are uniform and independent of the pictures, but stratified: one from each of batch_size equal slices, which makes
    the loss less noisy at no cost (Kingma et al. 2021, Variational Diffusion Models, I.1). pictures: the batch's,
    where they are of several sizes, see buckets.py.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "step", step))
    strata = torch.randperm(batch_size, generator=generator) + torch.rand(batch_size, generator=generator)
    timesteps = (strata * timestep_count / batch_size).long().clamp(max=timestep_count - 1)
    noise = torch.randn((batch_size, *latent_shape), generator=generator)
    if pyramid_noise:
        noise = _add_pyramid_noise(
            noise, pyramid_noise, torch.Generator().manual_seed(derive_seed(seed, "pyramid", step))
        )
    if noise_offset:  # Guttenberg 2023, Diffusion with Offset Noise: else the mean of a picture is hardly noised
        offset_generator = torch.Generator().manual_seed(derive_seed(seed, "offset", step))
        noise = noise + noise_offset * torch.randn((batch_size, latent_shape[0], 1, 1), generator=offset_generator)
    offset = step * batch_size
    positions = range(offset, offset + batch_size)
    indices = [_picture_at(seed, position, picture_count) for position in positions] if pictures is None else pictures
    caption_generator = torch.Generator().manual_seed(derive_seed(seed, "caption", step))
    captionless = torch.rand(batch_size, generator=caption_generator) < caption_dropout
    input_noise = None
    if input_perturbation:  # Ning et al. 2023, Input Perturbation Reduces Exposure Bias, which adds up while sampling
        perturbation_generator = torch.Generator().manual_seed(derive_seed(seed, "perturbation", step))
        input_noise = noise + input_perturbation * torch.randn(noise.shape, generator=perturbation_generator)
    return TrainingBatch(torch.tensor(indices), timesteps, noise, captionless, input_noise, offset)


def derive_seed(seed: int, purpose: str, number: int) -> int:
    """A seed of its own for one use of chance: unrelated to those of other numbers and other uses."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {purpose} {number}".encode(), digest_size=8).digest())


def _add_pyramid_noise(noise: Tensor, discount: float, generator: torch.Generator) -> Tensor:
    """Noise with enlarged smaller noises added, each weaker by the discount, then each picture brought to variance 1.

    Whitaker 2023, Multi-Resolution Noise for Diffusion Model Training: sides shrink by 2 to 4 for each, down to 1. As
    there, the full size counts twice, so that a discount means the same. noise: (batch, channels, height, width).
    """
    noise, shape, weight, level = noise * math.sqrt(2), noise.shape, 1.0, 0
    while min(shape[-2:]) > 1:
        level += 1
        ratio = (2 + 2 * torch.rand(1, generator=generator).item()) ** level
        shape = (*noise.shape[:2], *(max(1, int(side / ratio)) for side in noise.shape[-2:]))
        weight *= discount
        coarse = torch.randn(shape, generator=generator)
        noise = noise + weight * F.interpolate(coarse, noise.shape[-2:], mode="bilinear", align_corners=False)
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)


def _picture_at(seed: int, position: int, picture_count: int) -> int:
    """The picture at a place of the endless row of shuffled rounds."""
    epoch, index = divmod(position, picture_count)
    return int(_shuffle_epoch(seed, epoch, picture_count)[index])


@lru_cache(maxsize=2)
def _shuffle_epoch(seed: int, epoch: int, picture_count: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "round", epoch))
    return torch.randperm(picture_count, generator=generator)
