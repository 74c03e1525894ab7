"""What the planned rate is multiplied by as a training goes on: a warm-up first, then one of these shapes."""

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["constant", "linear", "cosine", "restarts"]

# From 0, where the warm-up ends, to 1, where the training does; the second number is how many restarts there are
SHAPES: dict[Schedule, Callable[[float, int], float]] = {
    "constant": lambda _along, _cycles: 1.0,
    "linear": lambda along, _cycles: 1 - along,
    "cosine": lambda along, _cycles: 0.5 * (1 + math.cos(math.pi * along)),
    "restarts": lambda along, cycles: 0.5 * (1 + math.cos(math.pi * (along * cycles % 1))),
}


def factor(schedule: Schedule, done: int, steps: int, *, warmup: int = 0, cycles: int = 1) -> float:
    """What the rate of the step after `done` is multiplied by; as diffusers' schedules, whose warm-up begins at 0."""
    if done < warmup:
        return done / warmup
    return SHAPES[schedule]((done - warmup) / max(1, steps - warmup), cycles)
