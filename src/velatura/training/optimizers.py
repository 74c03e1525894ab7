"""Optimizers: those of torch, Lion, and those of optional packages."""

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
    """Lion (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, program 1) with decoupled weight decay."""

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
        """Move every weight by the learning rate, up or down."""
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
    """Location of an optimizer: package (as pip names it), module and class, with options that are always passed."""

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
    """Create the plan's optimizer for an overlay, with one parameter group per part of the base.

    The entry "part" of a group says which part it is: "unet", "text" or "words".

    Raises:
        BadPlan: The optimizer's package is not installed.
    """
    parts: dict[str, list[Tensor]] = {}
    for name, weight in overlay.trainable_parameters.items():
        parts.setdefault(overlay.part_of(name), []).append(weight)
    groups: list[dict[str, object]] = [{"params": weights, "part": part} for part, weights in parts.items()]
    for group in groups:
        if group["part"] == "words":  # decay would change the meaning of a word, which depends on its vectors' length
            group["weight_decay"] = 0.0
    return create_optimizer(plan, groups)


def create_optimizer(plan: Plan, weights: Iterable[Tensor] | Iterable[dict[str, object]]) -> Optimizer:
    """Create the plan's optimizer in training mode.

    Args:
        plan: Names the optimizer and the weight decay.
        weights: Weights, or parameter groups as torch's optimizers take them.

    Raises:
        BadPlan: The optimizer's package is not installed.
    """
    source = OPTIMIZERS[plan.optimizer]
    try:
        optimizer_class = getattr(import_module(source.module), source.name)
    except ImportError:
        raise BadPlan(
            f"the optimizer {plan.optimizer} needs the package {source.package}, which is not installed: "
            f"pip install {source.package}, or choose adamw, lion or adafactor"
        ) from None
    optimizer: Optimizer = optimizer_class(weights, weight_decay=plan.weight_decay, **source.options)
    set_training_mode(optimizer, is_training=True)
    return optimizer


def has_training_mode(optimizer: Optimizer) -> bool:
    """Return True if an optimizer switches between weights for training and for use, as schedule-free ones do."""
    return hasattr(optimizer, "eval")


def set_training_mode(optimizer: Optimizer, *, is_training: bool) -> None:
    """Switch an optimizer with `has_training_mode` to its weights for training or for use; leave others alone."""
    if has_training_mode(optimizer):
        switch_mode: Callable[[], Any] = getattr(optimizer, "train" if is_training else "eval")
        switch_mode()


# Optimizers with a bounded step: a multiple of the rate, or of the rate times the largest weight. The bound is
# (1 - b1) / sqrt(1 - b2) = 3.2 for AdamW (Kingma & Ba 2015, section 2.1), 1 / sqrt(1 - b2) = 32 for schedule-free
# AdamW, 1 for Lion, and the root of a tensor's size for Adafactor. Where 8 bits round AdamW's divisor to 0, its epsilon
# of 1e-8 remains, with which the largest gradient leads to 1e30 at the largest rate. Prodigy finds its own rate.
BOUNDED_OPTIMIZERS = frozenset({"adamw", "adamw8bit", "lion", "adafactor", "schedule_free"})
# Largest weight or gradient: the sum of squares over a tensor, too, stays far below float32's maximum of 3.4e38
LARGEST_SAFE_VALUE = 1e14
LARGEST_SAFE_RATE = 1e6


@torch.no_grad()
def is_finite_step(name: str, optimizer: Optimizer, weights: Sequence[Tensor]) -> bool:
    """Return True if the next step cannot make a weight NaN or infinite, whatever the gradients' direction.

    Args:
        name: The plan's name of the optimizer.
        optimizer: Its parameter groups hold the learning rate and the weight decay, which counts as the rate does.
        weights: Weights that the step changes, with their gradients.
    """
    if name not in BOUNDED_OPTIMIZERS:
        return False
    for group in cast("list[dict[str, float]]", optimizer.param_groups):
        if not 0 <= group["lr"] * (1 + group["weight_decay"]) <= LARGEST_SAFE_RATE:
            return False
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    return bool(get_total_norm([*weights, *gradients], norm_type=torch.inf) <= LARGEST_SAFE_VALUE)
