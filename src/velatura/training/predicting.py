"""What a plan asks of the objective, in the objective's own values; and whether that fits what the base predicts."""

from __future__ import annotations

import copy

from velatura.base.base import Base
from velatura.base.schedule import NoiseSchedule
from velatura.errors import BadPlan
from velatura.training.objective import HuberLoss, LossWeighting
from velatura.training.plan import Plan


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
