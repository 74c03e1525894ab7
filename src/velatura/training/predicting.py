"""What a plan asks of the objective, in the objective's own values; and whether that fits what the base predicts."""

from __future__ import annotations

import copy

from velatura.base.base import Base
from velatura.base.schedule import Schedule
from velatura.errors import BadPlan
from velatura.training.objective import Huber, Weighing
from velatura.training.plan import Plan


def huber_of(plan: Plan) -> Huber | None:
    """How the plan measures errors, where it does not just square them."""
    return None if plan.loss == "squared" else Huber(plan.loss, plan.huber_threshold, plan.huber_schedule)


def weighing_of(plan: Plan) -> Weighing:
    """How the plan weighs errors by their timestep."""
    return Weighing(plan.min_snr, plan.debiased, plan.velocity_as_noise, plan.noise_as_velocity)


def scheduled(base: Base, plan: Plan) -> Base:
    """The base, with a schedule that ends in noise alone where the plan asks for it; raises BadPlan for a misfit.

    Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed.
    """
    _refuse_misfit(base, plan)
    old = base.schedule
    if not plan.zero_terminal_snr or old.zero_snr:
        return base
    base = copy.copy(base)
    base.schedule = Schedule(old.beta_start, old.beta_end, len(old), zero_snr=True)
    return base


def _refuse_misfit(base: Base, plan: Plan) -> None:
    """Refuse what only makes sense for a base that predicts the other thing."""
    predicts_velocity = base.family.prediction == "v_prediction"
    if predicts_velocity and plan.noise_as_velocity:
        raise BadPlan(f"{base.name} predicts velocity, which noise_as_velocity is not for: leave that at 0")
    for field in ("velocity_as_noise", "zero_terminal_snr"):
        if getattr(plan, field) and not predicts_velocity:
            raise BadPlan(f"{base.name} predicts noise, and {field} is for bases that predict velocity: leave it false")
