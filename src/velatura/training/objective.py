"""The objective of diffusion: noise is mixed into clean latents, and what was mixed in is to be told."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning

Measure = Literal["squared", "huber", "smooth_l1"]
Threshold = Literal["snr", "exponential", "constant"]


@dataclass(frozen=True)
class Huber:
    """An error that is squared where it is small and grows evenly where it is large, so that outliers rule less.

    threshold is where it goes from one to the other; by "snr" and "exponential" it is near 1 at the first timestep and
    comes down to that at the noisiest.
    """

    measure: Measure = "huber"
    threshold: float = 0.1
    schedule: Threshold = "snr"

    def of(self, difference: Tensor, timesteps: Tensor, kept: Tensor, timestep_count: int) -> Tensor:
        """The error of each number of a difference (batch, ...); kept is the schedule's alpha at each timestep."""
        least = self.threshold
        if self.schedule == "constant":
            at = torch.full_like(kept, least)
        elif self.schedule == "exponential":
            at = (math.log(least) * timesteps.to(kept.device) / timestep_count).exp()
        else:
            at = (1 - least) / (1 + ((1 - kept) / kept).sqrt()).square() + least
        c = at.view(-1, *[1] * (difference.dim() - 1))
        return 2 * (c if self.measure == "huber" else 1) * ((difference.square() + c.square()).sqrt() - c)


def denoising_loss(
    base: Base,
    latents: Tensor,
    said: Tensor | Conditioning,
    noise: Tensor,
    timesteps: Tensor,
    *,
    min_snr: float | None = None,
    huber: Huber | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean squared error of what the base predicts of noised latents: a 0-d tensor in float32.

    latents, noise: (batch, 4, height, width) in float32; said: by the captions, or their contexts (batch, tokens,
    width) alone, see Base.predict; timesteps: (batch,). With min_snr every picture's error is weighed by its timestep,
    see min_snr_weights; weights: (batch, 1, height, width), of mean 1, how much each place counts.
    """
    kept = base.schedule.alphas_cumprod.to(latents.device)[timesteps.to(latents.device)]  # (batch,)
    noisy = base.schedule.add_noise(latents, noise, timesteps)
    target = noise
    if base.family.prediction == "v_prediction":  # Salimans & Ho 2022, Progressive Distillation, appendix D
        target = kept.sqrt().view(-1, 1, 1, 1) * noise - (1 - kept).sqrt().view(-1, 1, 1, 1) * latents
    difference = base.predict(noisy, timesteps, said) - target
    errors = huber.of(difference, timesteps, kept, len(base.schedule)) if huber else difference.square()
    if weights is not None:
        errors = errors * weights
    errors = errors.mean(dim=(1, 2, 3))  # (batch,)
    if min_snr is None:
        return errors.mean()
    by_snr = min_snr_weights(kept / (1 - kept), min_snr, predicts_velocity=base.family.prediction == "v_prediction")
    return (by_snr * errors).mean()


def min_snr_weights(snr: Tensor, gamma: float, *, predicts_velocity: bool) -> Tensor:
    """Keep the easy timesteps from ruling: min(snr, gamma) / snr where noise is predicted, / (snr + 1) for velocity.

    Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy, section 3.4.
    """
    return snr.clamp(max=gamma) / (snr + 1 if predicts_velocity else snr)
