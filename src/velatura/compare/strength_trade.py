"""Trade between likeness and prompt over the strengths of an overlay, and where the best strength is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BOOTSTRAP_COUNT = 500
BOOTSTRAP_SEED = 0
INTERVAL = (0.1, 0.9)  # quantiles of the strengths that resampled prompts lead to
FINE_STEP = 0.01  # of the strengths at which the score is compared


@dataclass(frozen=True)
class TradePoint:
    """One strength on the curve.

    Attributes:
        strength: The strength.
        likeness: Share of the way from the base's pictures to the reference pictures, 1 for being as near to them as
            they are to each other.
        kept: Share of the prompt that is kept, 1 at strength 0.
        score: Both in one number, see `score`.
    """

    strength: float
    likeness: float
    kept: float
    score: float


@dataclass(frozen=True)
class BestStrength:
    """The best strength with its uncertainty, and the curve that it is the top of.

    Attributes:
        strength: The strength with the highest score.
        low, high: Between them it lies in 80 % of the cases if other prompts are drawn.
        points: The curve.
    """

    strength: float
    low: float
    high: float
    points: tuple[TradePoint, ...]


def best_strength(strengths: Sequence[float], likeness: Tensor, kept: Tensor) -> BestStrength:
    """Find the strength at which likeness and prompt are both high.

    Args:
        strengths: The strengths that were painted, rising.
        likeness, kept: (strengths, prompts), see `TradePoint`.
    """
    grid = torch.tensor(list(strengths), dtype=torch.float64)
    means = likeness.double().mean(dim=1), kept.double().mean(dim=1)
    points = tuple(
        TradePoint(strength, float(near), float(own), float(value))
        for strength, near, own, value in zip(strengths, *means, score(*means), strict=True)
    )
    generator = torch.Generator().manual_seed(BOOTSTRAP_SEED)
    prompts = likeness.shape[1]
    tops: list[float] = []
    for _ in range(BOOTSTRAP_COUNT):
        drawn = torch.randint(prompts, (prompts,), generator=generator)
        tops.append(_top(grid, likeness.double()[:, drawn].mean(dim=1), kept.double()[:, drawn].mean(dim=1)))
    quantiles = torch.quantile(torch.tensor(tops, dtype=torch.float64), torch.tensor(INTERVAL, dtype=torch.float64))
    low, high = (float(value) for value in quantiles)
    top = _top(grid, *means)
    return BestStrength(top, min(low, top), max(high, top), points)


def score(likeness: Tensor, kept: Tensor) -> Tensor:
    """Return the product of likeness and prompt kept, each between 0 and 1: high only where both are."""
    return likeness.clamp(0, 1) * kept.clamp(0, 1)


def _top(strengths: Tensor, likeness: Tensor, kept: Tensor) -> float:
    """Return where the score between the painted strengths is highest; the lowest of several such strengths."""
    count = round(float(strengths[-1] - strengths[0]) / FINE_STEP) + 1
    fine = torch.linspace(float(strengths[0]), float(strengths[-1]), count, dtype=torch.float64)
    scores = score(_interpolate(strengths, likeness, fine), _interpolate(strengths, kept, fine))
    return float(fine[int(scores.argmax())])


def _interpolate(xs: Tensor, ys: Tensor, at: Tensor) -> Tensor:
    """Interpolate linearly between points whose xs rise."""
    right = torch.searchsorted(xs, at).clamp(1, len(xs) - 1)
    left = right - 1
    share = (at - xs[left]) / (xs[right] - xs[left])
    return ys[left] + share * (ys[right] - ys[left])
