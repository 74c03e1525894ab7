"""The formulas that mix one tensor of two or three models; MODES has one row for each merge mode."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import torch
from torch import Tensor


class Parents(NamedTuple):
    """One tensor of models A and B, and of C if there is one, otherwise of A; in the models' own precisions."""

    first: Tensor
    second: Tensor
    base: Tensor


@dataclass(frozen=True)
class FormulaOptions:
    """Numbers that a formula takes.

    Attributes:
        strength: The s of the formulas.
        share: The share of a difference's values that TIES and DARE keep, above 0 up to 1.
        seed: Seed of DARE's random mask.
        key: The tensor's key, so that each tensor has its own mask.
    """

    strength: float
    share: float = 1.0
    seed: int = 0
    key: str = ""


Formula = Callable[[Parents, FormulaOptions], Tensor]


@dataclass(frozen=True)
class MergeMode:
    """A formula for merging, and how it is used.

    Attributes:
        title: The name in A1111, or in the formula's paper.
        formula: The function that mixes one tensor.
        model_counts: How many models it can take.
        strength: The default strength; 0.3 is A1111's.
        share: The default share, None for a formula that takes none.
        is_interpolation: True if only strengths from 0 to 1 have a meaning.
    """

    title: str
    formula: Formula
    model_counts: tuple[int, ...]
    strength: float = 0.3
    share: float | None = None
    is_interpolation: bool = False


def weighted_sum(parents: Parents, options: FormulaOptions) -> Tensor:
    """Return (1 - s) A + s B, each product rounded to its tensor's precision as in A1111."""
    return (1 - options.strength) * parents.first + options.strength * parents.second


def add_difference(parents: Parents, options: FormulaOptions) -> Tensor:
    """Return A + s (B - C), rounded at each step as in A1111."""
    return parents.first + options.strength * (parents.second - parents.base)


def sigmoid(parents: Parents, options: FormulaOptions) -> Tensor:
    """Return A + t (B - A) with t = 3 s² - 2 s³, which changes slowly near both ends: A1111's sigmoid of 2022."""
    s = options.strength
    return _interpolate(parents, s * s * (3 - 2 * s))


def inverse_sigmoid(parents: Parents, options: FormulaOptions) -> Tensor:
    """Return A + t (B - A) where s = 3 t² - 2 t³, which changes slowly in the middle: A1111's inverse sigmoid."""
    return _interpolate(parents, 0.5 - math.sin(math.asin(1 - 2 * options.strength) / 3))


def slerp(parents: Parents, options: FormulaOptions) -> Tensor:
    """Interpolate A and B along the arc between them, as vectors (Shoemake 1985); linearly if they are parallel."""
    first, second = parents.first.float(), parents.second.float()
    squares = float(first.square().sum()) * float(second.square().sum())
    cosine = float((first * second).sum()) / squares**0.5 if squares else 1.0
    if abs(cosine) > 1 - 1e-6:
        return _interpolate(parents, options.strength)
    angle = math.acos(cosine)
    first_weight = math.sin((1 - options.strength) * angle) / math.sin(angle)
    second_weight = math.sin(options.strength * angle) / math.sin(angle)
    return first_weight * first + second_weight * second


def ties(parents: Parents, options: FormulaOptions) -> Tensor:
    """Return C + s times the differences of A and B from C, merged by TIES (Yadav et al. 2023).

    TIES trims each difference to its largest share, elects for each value the sign with the larger total, and averages
    the values of that sign.
    """
    base = parents.base.float()
    changes = torch.stack([_trim(parent.float() - base, options.share) for parent in (parents.first, parents.second)])
    agrees = (changes.sign() == changes.sum(0).sign()) & (changes != 0)
    mean = (changes * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    return base + options.strength * mean


def dare(parents: Parents, options: FormulaOptions) -> Tensor:
    """Return A + s (B - C), of which a random share is kept and rescaled by 1 / share: DARE (Yu et al. 2023)."""
    seed = int.from_bytes(sha256(f"{options.seed} {options.key}".encode()).digest()[:7])
    uniform = torch.rand(parents.first.shape, generator=torch.Generator().manual_seed(seed))
    mask = (uniform < options.share).to(parents.first.device)
    change = (parents.second.float() - parents.base.float()) * mask / options.share
    return parents.first.float() + options.strength * change


def _interpolate(parents: Parents, fraction: float) -> Tensor:
    first = parents.first.float()
    return first + fraction * (parents.second.float() - first)


def _trim(change: Tensor, share: float) -> Tensor:
    """Return a difference with its largest values kept, as many as the share says, and the others set to 0."""
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
