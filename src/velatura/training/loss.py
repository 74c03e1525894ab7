"""The loss of diffusion training: noise is added to latents, and the base has to predict it (or the velocity).

Open `denoising_errors` first. The rest are options of it: Huber losses, weights by timestep, zero terminal SNR.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.base.conditioning import Conditioning
from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import BadPlan
from velatura.training.plan import HuberSchedule, LossType, Plan

MAX_INVERSE_SNR_WEIGHT = 10.0  # else the last timesteps rule: 1 / snr is 200 there
MAX_SNR = 1000.0  # larger ratios, in the first few timesteps, would make weights that are 0 or infinite


@dataclass(frozen=True)
class HuberLoss:
    """Loss that is squared for small errors and linear for large ones, so that outliers count less.

    Attributes:
        loss_type: "huber" or "smooth_l1", which is Huber's loss divided by the threshold.
        threshold: Error at which the loss becomes linear, at the noisiest timestep.
        schedule: "constant", or "snr" and "exponential", with which the threshold falls from about 1 at the first
            timestep to `threshold` at the last.
    """

    loss_type: LossType = "huber"
    threshold: float = 0.1
    schedule: HuberSchedule = "snr"

    def errors(self, difference: Tensor, timesteps: Tensor, alpha_bar: Tensor, timestep_count: int) -> Tensor:
        """Return the loss of each element, in its pseudo-Huber form (as kohya's scripts compute it).

        Args:
            difference: Prediction minus target, (batch, ...).
            timesteps: (batch,).
            alpha_bar: Cumulative alpha of the noise schedule at each timestep, (batch,).
            timestep_count: Number of timesteps of the schedule.
        """
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
    """Weights of the loss by the signal-to-noise ratio (SNR) at a picture's timestep; those that are set multiply.

    Attributes:
        min_snr: See `min_snr_weights`.
        debiased: Weight by 1 / sqrt(SNR), because errors matter most where there is most noise (Yu et al. 2023,
            Debias the Training of Diffusion Models).
        velocity_as_noise: Weight the error of a predicted velocity as if it were that of predicted noise.
        noise_as_velocity: Add the error of predicted noise as if it were that of velocity, times this number.
        inverse_snr: Weight by (1 / SNR) to this power, at most 10; for velocity by (1 / (SNR + 1)) to this power.
    """

    min_snr: float | None = None
    debiased: bool = False
    velocity_as_noise: bool = False
    noise_as_velocity: float = 0.0
    inverse_snr: float = 0.0

    def factors(self, snr: Tensor, *, predicts_velocity: bool) -> Tensor:
        """Return the weight for each signal-to-noise ratio, (batch,)."""
        weights = torch.ones_like(snr)
        capped_snr = snr.clamp(max=MAX_SNR)
        if self.min_snr is not None:
            weights = weights * min_snr_weights(snr, self.min_snr, predicts_velocity=predicts_velocity)
        if self.debiased:
            weights = weights / ((capped_snr + 1) if predicts_velocity else capped_snr.sqrt())
        if self.velocity_as_noise:
            weights = weights * capped_snr / (capped_snr + 1)
        if self.inverse_snr:
            inverse = 1 / (capped_snr + 1 if predicts_velocity else capped_snr)
            weights = weights * (inverse**self.inverse_snr).clamp(max=MAX_INVERSE_SNR_WEIGHT)
        if self.noise_as_velocity:
            weights = weights * (1 + self.noise_as_velocity * (capped_snr + 1) / capped_snr)
        return weights


def denoising_errors(
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
    image_condition: Tensor | None = None,
) -> Tensor:
    """Add noise to latents and return the error of the base's prediction of each, squared unless `huber` is given.

    Args:
        base: Predicts noise or velocity, as its family says.
        latents, noise: (batch, 4, height / 8, width / 8), in float32.
        cond: Conditioning by the captions, or their contexts alone, (batch, tokens, features); see `Base.predict`.
        timesteps: (batch,), 999 the noisiest of 1000.
        input_noise: Noise to add to the latents where it differs from `noise`, which remains the target.
        weighting: Weights by timestep.
        huber: Loss in place of the squared error.
        weights: Weights by position, (batch, 1, height / 8, width / 8), of mean 1.
        image_condition: What an inpainting or pix2pix UNet reads beside the latents; None for no image.

    Returns:
        The mean error of each picture, (batch,), in float32.
    """
    alpha_bar = base.schedule.alphas_cumprod.to(latents.device)[timesteps.to(latents.device)]  # (batch,)
    noisy_latents = base.schedule.add_noise(latents, noise if input_noise is None else input_noise, timesteps)
    target, predicts_velocity = noise, base.family.prediction == "v_prediction"
    if predicts_velocity:  # Salimans & Ho 2022, Progressive Distillation, appendix D
        target = alpha_bar.sqrt().view(-1, 1, 1, 1) * noise - (1 - alpha_bar).sqrt().view(-1, 1, 1, 1) * latents

    difference = base.predict(noisy_latents, timesteps, cond, image_condition=image_condition) - target
    errors = huber.errors(difference, timesteps, alpha_bar, len(base.schedule)) if huber else difference.square()
    if weights is not None:
        errors = errors * weights
    errors = errors.mean(dim=(1, 2, 3))  # (batch,)
    if weighting:
        errors = errors * weighting.factors(alpha_bar / (1 - alpha_bar), predicts_velocity=predicts_velocity)
    return errors


def min_snr_weights(snr: Tensor, gamma: float, *, predicts_velocity: bool) -> Tensor:
    """Return min(snr, gamma) / snr, or / (snr + 1) for velocity, which keeps timesteps with little noise from ruling.

    Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting Strategy, section 3.4.
    """
    return snr.clamp(max=gamma) / (snr + 1 if predicts_velocity else snr)


def create_huber_loss(plan: Plan) -> HuberLoss | None:
    """Return the plan's Huber loss, or None if the plan uses the squared error."""
    return None if plan.loss == "squared" else HuberLoss(plan.loss, plan.huber_threshold, plan.huber_schedule)


def create_loss_weighting(plan: Plan) -> LossWeighting:
    """Return the plan's weights by timestep."""
    return LossWeighting(plan.min_snr, plan.debiased, plan.velocity_as_noise, plan.noise_as_velocity, plan.inverse_snr)


def apply_zero_terminal_snr(base: Base, plan: Plan) -> Base:
    """Return a copy of the base whose noise schedule ends in pure noise, or the base itself if the plan says no.

    Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed.

    Raises:
        BadPlan: See `check_prediction_type`.
    """
    check_prediction_type(base, plan)
    schedule = base.schedule
    if not plan.zero_terminal_snr or schedule.zero_snr:
        return base
    base = copy.copy(base)
    base.schedule = NoiseSchedule(schedule.beta_start, schedule.beta_end, len(schedule), zero_snr=True)
    return base


def check_prediction_type(base: Base, plan: Plan) -> None:
    """Refuse options that are for the other prediction type.

    Raises:
        BadPlan: The base predicts velocity and the plan has an option for noise, or the other way round.
    """
    predicts_velocity = base.family.prediction == "v_prediction"
    if predicts_velocity and plan.noise_as_velocity:
        raise BadPlan(
            f"{base.name} predicts velocity, and noise_as_velocity is for bases that predict noise: set it to 0"
        )
    for field in ("velocity_as_noise", "zero_terminal_snr"):
        if getattr(plan, field) and not predicts_velocity:
            raise BadPlan(
                f"{base.name} predicts noise, and {field} is for bases that predict velocity: set it to false"
            )
