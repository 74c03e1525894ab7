"""Lion: the sign of a momentum is the step, so half the memory of AdamW and a rate three to ten times lower."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, program 1; weight decay is decoupled."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every weight by the rate, up or down."""
        assert closure is None
        group: dict[str, Any]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                momentum: Tensor = self.state[weight].setdefault("exp_avg", torch.zeros_like(weight))
                direction = torch.lerp(weight.grad, momentum, beta1).sign()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                momentum.lerp_(weight.grad, 1 - beta2)
