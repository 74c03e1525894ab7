"""The objective of diffusion: noise is mixed into clean latents, and what was mixed in is to be told."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import BadPlan
from velatura.training.plan import Plan

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


def create_huber_loss(plan: Plan) -> HuberLoss | None:
    """How the plan measures errors, where it does not just square them."""
    return None if plan.loss == "squared" else HuberLoss(plan.loss, plan.huber_threshold, plan.huber_schedule)


def create_loss_weighting(plan: Plan) -> LossWeighting:
    """How the plan weighs errors by their timestep."""
    return LossWeighting(plan.min_snr, plan.debiased, plan.velocity_as_noise, plan.noise_as_velocity)


def apply_zero_terminal_snr(base: Base, plan: Plan) -> Base:
    """The base, with a schedule that ends in noise alone where the plan asks for it; raises BadPlan for a misfit.

    Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed.
    """
    _check_prediction_type(base, plan)
    old = base.schedule
    if not plan.zero_terminal_snr or old.zero_snr:
        return base
    base = copy.copy(base)
    base.schedule = NoiseSchedule(old.beta_start, old.beta_end, len(old), zero_snr=True)
    return base


def _check_prediction_type(base: Base, plan: Plan) -> None:
    """Refuse what only makes sense for a base that predicts the other thing."""
    predicts_velocity = base.family.prediction == "v_prediction"
    if predicts_velocity and plan.noise_as_velocity:
        raise BadPlan(f"{base.name} predicts velocity, which noise_as_velocity is not for: leave that at 0")
    for field in ("velocity_as_noise", "zero_terminal_snr"):
        if getattr(plan, field) and not predicts_velocity:
            raise BadPlan(f"{base.name} predicts noise, and {field} is for bases that predict velocity: leave it false")
