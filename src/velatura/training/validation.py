"""A fixed examination: the same pictures, timesteps and noise at every try, so that two losses can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.training.cache import Cache
from velatura.training.chance import seed_of
from velatura.training.objective import denoising_loss
from velatura.training.precision import products_in

AT_ONCE = 8
SEED = 0  # of every run, whatever its own: so that runs can be compared too
COLOURLESS = 0.5  # of the smoothness of the pictures it learns from: below, a preview is noise


@dataclass(frozen=True)
class Examination:
    """Latents, what is said of them, timesteps from all over the schedule, one a picture, and noise."""

    latents: Tensor
    said: Conditioning
    timesteps: Tensor
    noise: Tensor

    @classmethod
    def of(cls, cache: Cache, count: int, timestep_count: int) -> Self:
        """Take pictures in turn and the middles of as many slices of the schedule."""
        rows = torch.arange(count) % (len(cache.said.context) - 1)
        latents = cache.latents[rows]
        noise = [
            torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed_of(SEED, "validation", number)))
            for number in range(count)
        ]
        timesteps = ((torch.arange(count) + 0.5) * timestep_count / count).long()
        return cls(latents, cache.said.rows(rows), timesteps, torch.stack(noise).to(latents.device))

    @torch.no_grad()
    def loss(self, base: Base) -> float:
        """The plain mean squared error, whatever the plan weighs while learning."""
        total = 0.0
        for first in range(0, len(self.latents), AT_ONCE):
            rows = torch.arange(first, min(first + AT_ONCE, len(self.latents)))
            with products_in(base):
                part = denoising_loss(
                    base, self.latents[rows], self.said.rows(rows), self.noise[rows], self.timesteps[rows]
                )
            total += part.item() * len(rows)
        return total / len(self.latents)


def smoothness(latents: Tensor) -> float:
    """How alike neighbours are, from about 0 in noise to near 1 in pictures: the correlation of latents side by side.

    latents: (batch, 4, height, width).
    """
    centred = latents.float() - latents.float().mean(dim=(2, 3), keepdim=True)
    power = centred.square().mean().item()
    beside = (centred[..., 1:] * centred[..., :-1]).mean().item()
    below = (centred[..., 1:, :] * centred[..., :-1, :]).mean().item()
    return (beside + below) / 2 / power if power else 1.0
