"""What moves an overlay's weights: torch's optimizers, our own, and those of packages that may be installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from velatura.errors import BadPlan
from velatura.overlays.overlay import Overlay
from velatura.training.lion import Lion
from velatura.training.plan import Plan


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
