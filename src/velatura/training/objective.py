"""The objective of diffusion: noise is mixed into clean latents, and what was mixed in is to be told."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning

LossMeasure = Literal["squared", "huber", "smooth_l1"]
ThresholdSchedule = Literal["snr", "exponential", "constant"]
MAX_SNR = 1000.0  # above it, in the first few timesteps, there is nothing left to weigh


@dataclass(frozen=True)
class HuberLoss:
    """An error that is squared where it is small and grows evenly where it is large, so that outliers rule less.

    threshold is where it goes from one to the other; by "snr" and "exponential" it is near 1 at the first timestep and
    comes down to that at the noisiest.
    """

    loss_type: LossMeasure = "huber"
    threshold: float = 0.1
    schedule: ThresholdSchedule = "snr"

    def errors(self, difference: Tensor, timesteps: Tensor, alpha_bar: Tensor, timestep_count: int) -> Tensor:
        """The error of each number of a difference (batch, ...); kept is the schedule's alpha at each timestep."""
        minimum = self.threshold
        if self.schedule == "constant":
            thresholds = torch.full_like(alpha_bar, minimum)
        elif self.schedule == "exponential":
            thresholds = (math.log(minimum) * timesteps.to(alpha_bar.device) / timestep_count).exp()
        else:
            thresholds = (1 - minimum) / (1 + ((1 - alpha_bar) / alpha_bar).sqrt()).square() + minimum
        c = thresholds.view(-1, *[1] * (difference.dim() - 1))
        return 2 * (c if self.loss_type == "huber" else 1) * ((difference.square() + c.square()).sqrt() - c)


@dataclass(frozen=True)
class LossWeighting:
    """How much a picture's error counts by the signal-to-noise ratio at its timestep; all that is chosen multiplies.

    min_snr: see min_snr_weights. debiased: by the root of the noise's share, as noise that is told wrongly matters most
    where there is most of it (Yu et al. 2023, Debias the Training of Diffusion Models). velocity_as_noise: errors of
    velocity as if they were those of noise. noise_as_velocity: errors of noise also as those of velocity, this much.
    """

    min_snr: float | None = None
    debiased: bool = False
    velocity_as_noise: bool = False
    noise_as_velocity: float = 0.0

    def factors(self, snr: Tensor, *, predicts_velocity: bool) -> Tensor:
        """A factor for each ratio."""
        weights, capped_snr = torch.ones_like(snr), snr.clamp(max=MAX_SNR)
        if self.min_snr is not None:
            weights = weights * min_snr_weights(snr, self.min_snr, predicts_velocity=predicts_velocity)
        if self.debiased:
            weights = weights / ((capped_snr + 1) if predicts_velocity else capped_snr.sqrt())
        if self.velocity_as_noise:
            weights = weights * capped_snr / (capped_snr + 1)
        return weights * (1 + self.noise_as_velocity * (capped_snr + 1) / capped_snr)


def denoising_loss(
    base: Base,
    latents: Tensor,
    cond: Tensor | Conditioning,
    noise: Tensor,
    timesteps: Tensor,
    *,
    input_noise: Tensor | None = None,
    weighting: LossWeighting | None = None,
    huber: HuberLoss | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The mean squared error of what the base predicts of noised latents: a 0-d tensor in float32.

    latents, noise: (batch, 4, height, width) in float32; said: by the captions, or their contexts (batch, tokens,
    width) alone, see Base.predict; timesteps: (batch,); mixed: noise that is mixed in in place of the one to be told.
    weights: (batch, 1, height, width), of mean 1, how much each place counts.
    """
    alpha_bar = base.schedule.alphas_cumprod.to(latents.device)[timesteps.to(latents.device)]  # (batch,)
    noisy_latents = base.schedule.add_noise(latents, noise if input_noise is None else input_noise, timesteps)
    target, predicts_velocity = noise, base.family.prediction == "v_prediction"
    if predicts_velocity:  # Salimans & Ho 2022, Progressive Distillation, appendix D
        target = alpha_bar.sqrt().view(-1, 1, 1, 1) * noise - (1 - alpha_bar).sqrt().view(-1, 1, 1, 1) * latents
    difference = base.predict(noisy_latents, timesteps, cond) - target
    errors = huber.errors(difference, timesteps, alpha_bar, len(base.schedule)) if huber else difference.square()
    if weights is not None:
        errors = errors * weights
    errors = errors.mean(dim=(1, 2, 3))  # (batch,)
    if weighting:
        errors = errors * weighting.factors(alpha_bar / (1 - alpha_bar), predicts_velocity=predicts_velocity)
    return errors.mean()


def min_snr_weights(snr: Tensor, gamma: float, *, predicts_velocity: bool) -> Tensor:
    """Keep the easy timesteps from ruling: min(snr, gamma) / snr where noise is predicted, / (snr + 1) for velocity.

    Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy, section 3.4.
    """
    return snr.clamp(max=gamma) / (snr + 1 if predicts_velocity else snr)
