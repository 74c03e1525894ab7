"""What moves an overlay's weights: torch's optimizers, our own, and those of packages that may be installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from velatura.errors import BadPlan
from velatura.overlays.overlay import Overlay
from velatura.training.plan import Plan


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


class OptimizerSource(NamedTuple):
    """Where an optimizer is found: its package as pip calls it, the module, the class, and options of its own."""

    package: str
    module: str
    name: str
    options: Mapping[str, object] = MappingProxyType({})


# torch's own Adafactor decays and clips as its paper does (Shazeer & Stern 2018)
OPTIMIZERS = {
    "adamw": OptimizerSource("torch", "torch.optim", "AdamW"),
    "lion": OptimizerSource("velatura", Lion.__module__, Lion.__name__),
    "adafactor": OptimizerSource("torch", "torch.optim", "Adafactor"),
    "prodigy": OptimizerSource(
        "prodigyopt", "prodigyopt", "Prodigy", {"safeguard_warmup": True, "use_bias_correction": True}
    ),
    "adamw8bit": OptimizerSource("bitsandbytes", "bitsandbytes.optim", "AdamW8bit"),
    "schedule_free": OptimizerSource("schedulefree", "schedulefree", "AdamWScheduleFree"),
}


def create_overlay_optimizer(plan: Plan, overlay: Overlay) -> Optimizer:
    """The plan's optimizer for an overlay's weights, a group for each part of the base that they act in.

    Each group says by "part" which one it is.
    """
    parts: dict[str, list[Tensor]] = {}
    for name, weight in overlay.trainable_parameters.items():
        parts.setdefault(overlay.part_of(name), []).append(weight)
    groups: list[dict[str, object]] = [{"params": weights, "part": part} for part, weights in parts.items()]
    for group in groups:
        if group["part"] == "words":  # how long they are is what they say
            group["weight_decay"] = 0.0
    return create_optimizer(plan, groups)


def create_optimizer(plan: Plan, weights: Iterable[Tensor] | Iterable[dict[str, object]]) -> Optimizer:
    """The plan's optimizer, ready for these weights, or groups of them; BadPlan where its package is not installed."""
    source = OPTIMIZERS[plan.optimizer]
    try:
        optimizer_class = getattr(import_module(source.module), source.name)
    except ImportError:
        raise BadPlan(
            f"the optimizer {plan.optimizer} needs the package {source.package}, which is not installed: "
            f"pip install {source.package}, or plan adamw, lion or adafactor"
        ) from None
    optimizer: Optimizer = optimizer_class(weights, weight_decay=plan.weight_decay, **source.options)
    set_training_mode(optimizer, is_training=True)
    return optimizer


def has_training_mode(optimizer: Optimizer) -> bool:
    """Whether an optimizer holds two sets of weights, to learn on and to use, as schedule-free ones do."""
    return hasattr(optimizer, "eval")


def set_training_mode(optimizer: Optimizer, *, is_training: bool) -> None:
    """Tell an optimizer that holds two sets of weights which is wanted: to learn on, or to use."""
    if has_training_mode(optimizer):
        switch_mode: Callable[[], Any] = getattr(optimizer, "train" if is_training else "eval")
        switch_mode()


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
