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
class Chosen:
    """What a formula is told. share: of a difference that is kept; seed and key: of what is drawn for a tensor."""

    strength: float
    share: float = 1.0
    seed: int = 0
    key: str = ""


Formula = Callable[[Parents, Chosen], Tensor]


@dataclass(frozen=True)
class Mode:
    """A way to mix: what A1111 or its paper calls it, how many models it takes, and what is usual."""

    title: str
    formula: Formula
    models: tuple[int, ...]
    strength: float = 0.3  # A1111's
    share: float | None = None
    between: bool = False  # whether only strengths from 0 to 1 mean something


def weighted(parents: Parents, chosen: Chosen) -> Tensor:
    """(1 - s) A + s B, each product rounded to its tensor's precision, as A1111 does."""
    return (1 - chosen.strength) * parents.first + chosen.strength * parents.second


def added(parents: Parents, chosen: Chosen) -> Tensor:
    """A + s (B - C), rounded at each step, as A1111 does."""
    return parents.first + chosen.strength * (parents.second - parents.base)


def eased(parents: Parents, chosen: Chosen) -> Tensor:
    """A + t (B - A) with t = 3 s² - 2 s³, which lingers at both ends: A1111's sigmoid of 2022."""
    s = chosen.strength
    return _between(parents, s * s * (3 - 2 * s))


def hurried(parents: Parents, chosen: Chosen) -> Tensor:
    """A + t (B - A) where s = 3 t² - 2 t³, which lingers in the middle: A1111's inverse sigmoid of 2022."""
    return _between(parents, 0.5 - math.sin(math.asin(1 - 2 * chosen.strength) / 3))


def turned(parents: Parents, chosen: Chosen) -> Tensor:
    """From A to B along the arc between them, as two vectors (Shoemake 1985); straight where they are parallel."""
    first, second = parents.first.float(), parents.second.float()
    squares = float(first.square().sum()) * float(second.square().sum())
    cosine = float((first * second).sum()) / squares**0.5 if squares else 1.0
    if abs(cosine) > 1 - 1e-6:
        return _between(parents, chosen.strength)
    angle = math.acos(cosine)
    back, forth = (math.sin(share * angle) / math.sin(angle) for share in (1 - chosen.strength, chosen.strength))
    return back * first + forth * second


def elected(parents: Parents, chosen: Chosen) -> Tensor:
    """C + s times what A and B changed, where they agree: TIES (Yadav et al. 2023).

    Of each difference the largest share is kept; each value takes the sign that has more weight in both, and is the
    mean of those of that sign.
    """
    base = parents.base.float()
    changes = torch.stack([_largest(each.float() - base, chosen.share) for each in (parents.first, parents.second)])
    agrees = (changes.sign() == changes.sum(0).sign()) & (changes != 0)
    mean = (changes * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    return base + chosen.strength * mean


def dropped(parents: Parents, chosen: Chosen) -> Tensor:
    """A + s (B - C), of whose values a share is kept by chance and made as much larger: DARE (Yu et al. 2023)."""
    seed = int.from_bytes(sha256(f"{chosen.seed} {chosen.key}".encode()).digest()[:7])
    chance = torch.rand(parents.first.shape, generator=torch.Generator().manual_seed(seed))
    kept = (chance < chosen.share).to(parents.first.device)
    change = (parents.second.float() - parents.base.float()) * kept / chosen.share
    return parents.first.float() + chosen.strength * change


def _between(parents: Parents, share: float) -> Tensor:
    first = parents.first.float()
    return first + share * (parents.second.float() - first)


def _largest(change: Tensor, share: float) -> Tensor:
    """The share of a difference's values that are largest, the others 0."""
    count = round(share * change.numel())
    if count >= change.numel():
        return change
    if count == 0:
        return torch.zeros_like(change)
    sizes = change.abs()
    least = sizes.flatten().kthvalue(change.numel() - count + 1).values
    return torch.where(sizes >= least, change, 0)


MODES = {
    "none": Mode("No interpolation", weighted, (1,), strength=0.0),
    "weighted-sum": Mode("Weighted sum", weighted, (2,)),
    "add-difference": Mode("Add difference", added, (3,), strength=1.0),
    "sigmoid": Mode("Sigmoid", eased, (2,), between=True),
    "inverse-sigmoid": Mode("Inverse sigmoid", hurried, (2,), between=True),
    "slerp": Mode("Spherical", turned, (2,)),
    "ties": Mode("TIES", elected, (3,), strength=1.0, share=0.2),
    "dare": Mode("DARE", dropped, (2, 3), strength=1.0, share=0.5),
}
