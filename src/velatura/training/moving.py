"""Steps of an optimizer that cannot lead out of the numbers, so that nothing need be kept to undo them by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

# Those that move a weight, for such gradients, by no more than so many rates, or rates times the largest weight:
# AdamW by (1 - b1) / sqrt(1 - b2) = 3.2 (Kingma & Ba 2015, section 2.1), schedule-free AdamW by 1 / sqrt(1 - b2) = 32,
# Lion by 1, Adafactor by the root of a tensor's size. Where 8 bits round AdamW's divisor to 0, its epsilon of 1e-8 is
# left, by which the largest gradient leads to 1e30 at the largest rate. Prodigy finds its own rate.
BOUNDED_OPTIMIZERS = frozenset({"adamw", "adamw8bit", "lion", "adafactor", "schedule_free"})
LARGEST_SAFE_VALUE = (
    1e14  # weight or gradient, so that the sum of squares of a tensor, too, is far from float32's end at 3.4e38
)
LARGEST_SAFE_RATE = 1e6


@torch.no_grad()
def is_finite_step(name: str, optimizer: Optimizer, weights: Sequence[Tensor]) -> bool:
    """Whether the next step cannot make a weight anything but a number; decay counts as the rate does."""
    if name not in BOUNDED_OPTIMIZERS:
        return False
    for group in cast("list[dict[str, float]]", optimizer.param_groups):
        if not 0 <= group["lr"] * (1 + group["weight_decay"]) <= LARGEST_SAFE_RATE:
            return False
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return bool(get_total_norm([*weights, *gradients], norm_type=torch.inf) <= LARGEST_SAFE_VALUE)
