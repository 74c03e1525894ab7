"""How the weights of models are mixed, tensor by tensor: one row here for each way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor


class Parents(NamedTuple):
    """One tensor of each model, in their own precisions; base: the third's, or the first's where there is no third."""

    first: Tensor
    second: Tensor
    base: Tensor


@dataclass(frozen=True)
class FormulaOptions:
    """What a formula is told. share: of a difference that is kept; seed and key: of what is drawn for a tensor."""

    strength: float
    share: float = 1.0
    seed: int = 0
    key: str = ""


Formula = Callable[[Parents, FormulaOptions], Tensor]


@dataclass(frozen=True)
class MergeMode:
    """A way to mix: what A1111 or its paper calls it, how many models it takes, and what is usual."""

    title: str
    formula: Formula
    model_counts: tuple[int, ...]
    strength: float = 0.3  # A1111's
    share: float | None = None
    is_interpolation: bool = False  # whether only strengths from 0 to 1 mean something


def weighted_sum(parents: Parents, options: FormulaOptions) -> Tensor:
    """(1 - s) A + s B, each product rounded to its tensor's precision, as A1111 does."""
    return (1 - options.strength) * parents.first + options.strength * parents.second


def add_difference(parents: Parents, options: FormulaOptions) -> Tensor:
    """A + s (B - C), rounded at each step, as A1111 does."""
    return parents.first + options.strength * (parents.second - parents.base)


def sigmoid(parents: Parents, options: FormulaOptions) -> Tensor:
    """A + t (B - A) with t = 3 s² - 2 s³, which lingers at both ends: A1111's sigmoid of 2022."""
    s = options.strength
    return _interpolate(parents, s * s * (3 - 2 * s))


def inverse_sigmoid(parents: Parents, options: FormulaOptions) -> Tensor:
    """A + t (B - A) where s = 3 t² - 2 t³, which lingers in the middle: A1111's inverse sigmoid of 2022."""
    return _interpolate(parents, 0.5 - math.sin(math.asin(1 - 2 * options.strength) / 3))


def slerp(parents: Parents, options: FormulaOptions) -> Tensor:
    """From A to B along the arc between them, as two vectors (Shoemake 1985); straight where they are parallel."""
    first, second = parents.first.float(), parents.second.float()
    squares = float(first.square().sum()) * float(second.square().sum())
    cosine = float((first * second).sum()) / squares**0.5 if squares else 1.0
    if abs(cosine) > 1 - 1e-6:
        return _interpolate(parents, options.strength)
    angle = math.acos(cosine)
    first_weight, second_weight = (
        math.sin(fraction * angle) / math.sin(angle) for fraction in (1 - options.strength, options.strength)
    )
    return first_weight * first + second_weight * second


def ties(parents: Parents, options: FormulaOptions) -> Tensor:
    """C + s times what A and B changed, where they agree: TIES (Yadav et al. 2023).

    Of each difference the largest share is kept; each value takes the sign that has more weight in both, and is the
    mean of those of that sign.
    """
    base = parents.base.float()
    changes = torch.stack([_trim(parent.float() - base, options.share) for parent in (parents.first, parents.second)])
    has_elected_sign = (changes.sign() == changes.sum(0).sign()) & (changes != 0)
    mean = (changes * has_elected_sign).sum(0) / has_elected_sign.sum(0).clamp(min=1)
    return base + options.strength * mean


def dare(parents: Parents, options: FormulaOptions) -> Tensor:
    """A + s (B - C), of whose values a share is kept by chance and made as much larger: DARE (Yu et al. 2023)."""
    seed = int.from_bytes(sha256(f"{options.seed} {options.key}".encode()).digest()[:7])
    uniform = torch.rand(parents.first.shape, generator=torch.Generator().manual_seed(seed))
    mask = (uniform < options.share).to(parents.first.device)
    change = (parents.second.float() - parents.base.float()) * mask / options.share
    return parents.first.float() + options.strength * change


def _interpolate(parents: Parents, fraction: float) -> Tensor:
    first = parents.first.float()
    return first + fraction * (parents.second.float() - first)


def _trim(change: Tensor, share: float) -> Tensor:
    """The share of a difference's values that are largest, the others 0."""
    count = round(share * change.numel())
    if count >= change.numel():
        return change
    if count == 0:
        return torch.zeros_like(change)
    magnitudes = change.abs()
    threshold = magnitudes.flatten().kthvalue(change.numel() - count + 1).values
    return torch.where(magnitudes >= threshold, change, 0)


MODES = {
    "none": MergeMode("No interpolation", weighted_sum, (1,), strength=0.0),
    "weighted-sum": MergeMode("Weighted sum", weighted_sum, (2,)),
    "add-difference": MergeMode("Add difference", add_difference, (3,), strength=1.0),
    "sigmoid": MergeMode("Sigmoid", sigmoid, (2,), is_interpolation=True),
    "inverse-sigmoid": MergeMode("Inverse sigmoid", inverse_sigmoid, (2,), is_interpolation=True),
    "slerp": MergeMode("Spherical", slerp, (2,)),
    "ties": MergeMode("TIES", ties, (3,), strength=1.0, share=0.2),
    "dare": MergeMode("DARE", dare, (2, 3), strength=1.0, share=0.5),
}
