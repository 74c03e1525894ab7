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
MOST_SNR = 1000.0  # above it, in the first few timesteps, there is nothing left to weigh


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


@dataclass(frozen=True)
class Weighing:
    """How much a picture's error counts by the signal-to-noise ratio at its timestep; all that is chosen multiplies.

    min_snr: see min_snr_weights. debiased: by the root of the noise's share, as noise that is told wrongly matters most
    where there is most of it (Yu et al. 2023, Debias the Training of Diffusion Models). velocity_as_noise: errors of
    velocity as if they were those of noise. noise_as_velocity: errors of noise also as those of velocity, this much.
    """

    min_snr: float | None = None
    debiased: bool = False
    velocity_as_noise: bool = False
    noise_as_velocity: float = 0.0

    def of(self, snr: Tensor, *, predicts_velocity: bool) -> Tensor:
        """A factor for each ratio."""
        factors, capped = torch.ones_like(snr), snr.clamp(max=MOST_SNR)
        if self.min_snr is not None:
            factors = factors * min_snr_weights(snr, self.min_snr, predicts_velocity=predicts_velocity)
        if self.debiased:
            factors = factors / ((capped + 1) if predicts_velocity else capped.sqrt())
        if self.velocity_as_noise:
            factors = factors * capped / (capped + 1)
        return factors * (1 + self.noise_as_velocity * (capped + 1) / capped)


def denoising_loss(
    base: Base,
    latents: Tensor,
    said: Tensor | Conditioning,
    noise: Tensor,
    timesteps: Tensor,
    *,
    mixed: Tensor | None = None,
    weighing: Weighing | None = None,
    huber: Huber | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean squared error of what the base predicts of noised latents: a 0-d tensor in float32.

    latents, noise: (batch, 4, height, width) in float32; said: by the captions, or their contexts (batch, tokens,
    width) alone, see Base.predict; timesteps: (batch,); mixed: noise that is mixed in in place of the one to be told.
    weights: (batch, 1, height, width), of mean 1, how much each place counts.
    """
    kept = base.schedule.alphas_cumprod.to(latents.device)[timesteps.to(latents.device)]  # (batch,)
    noisy = base.schedule.add_noise(latents, noise if mixed is None else mixed, timesteps)
    target, predicts_velocity = noise, base.family.prediction == "v_prediction"
    if predicts_velocity:  # Salimans & Ho 2022, Progressive Distillation, appendix D
        target = kept.sqrt().view(-1, 1, 1, 1) * noise - (1 - kept).sqrt().view(-1, 1, 1, 1) * latents
    difference = base.predict(noisy, timesteps, said) - target
    errors = huber.of(difference, timesteps, kept, len(base.schedule)) if huber else difference.square()
    if weights is not None:
        errors = errors * weights
    errors = errors.mean(dim=(1, 2, 3))  # (batch,)
    if weighing:
        errors = errors * weighing.of(kept / (1 - kept), predicts_velocity=predicts_velocity)
    return errors.mean()


def min_snr_weights(snr: Tensor, gamma: float, *, predicts_velocity: bool) -> Tensor:
    """Keep the easy timesteps from ruling: min(snr, gamma) / snr where noise is predicted, / (snr + 1) for velocity.

    Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy, section 3.4.
    """
    return snr.clamp(max=gamma) / (snr + 1 if predicts_velocity else snr)
