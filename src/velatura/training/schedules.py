"""What the planned rate is multiplied by as a training goes on: a warm-up first, then one of these shapes."""

import math
from collections.abc import Callable
from typing import Literal

RateSchedule = Literal["constant", "linear", "cosine", "restarts"]

# From 0, where the warm-up ends, to 1, where the training does; the second number is how many restarts there are
SCHEDULE_FACTORS: dict[RateSchedule, Callable[[float, int], float]] = {
    "constant": lambda _along, _cycles: 1.0,
    "linear": lambda progress, _cycles: 1 - progress,
    "cosine": lambda progress, _cycles: 0.5 * (1 + math.cos(math.pi * progress)),
    "restarts": lambda progress, cycles: 0.5 * (1 + math.cos(math.pi * (progress * cycles % 1))),
}


def schedule_factor(schedule: RateSchedule, step: int, total_steps: int, *, warmup: int = 0, cycles: int = 1) -> float:
    """What the rate of the step after `done` is multiplied by; as diffusers' schedules, whose warm-up begins at 0."""
    if step < warmup:
        return step / warmup
    return SCHEDULE_FACTORS[schedule]((step - warmup) / max(1, total_steps - warmup), cycles)
