"""Trade between likeness and prompt over the strengths of an overlay, and where the best strength is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KEPT_POWER = 1 / 6  # of the prompt kept in the score; chosen with five overlays and a classifier, see docs/measuring.md
BOOTSTRAP_COUNT = 500
BOOTSTRAP_SEED = 0
INTERVAL = (0.1, 0.9)  # quantiles of the strengths that resampled prompts lead to


@dataclass(frozen=True)
class TradePoint:
    """One strength on the curve.

    Attributes:
        strength: The strength.
        likeness: Share of the way from the base's pictures to the reference pictures, 1 for being as near to them as
            they are to each other.
        kept: Share of the prompt that is kept, 1 at strength 0.
        score: Both in one number, see `score_trade`.
    """

    strength: float
    likeness: float
    kept: float
    score: float


@dataclass(frozen=True)
class BestStrength:
    """The best strength with its uncertainty, and the curve that it is the top of.

    Attributes:
        strength: The strength with the highest score, between the painted ones too.
        low, high: Between them it lies in 80 % of the cases if other prompts are drawn.
        points: The curve.
    """

    strength: float
    low: float
    high: float
    points: tuple[TradePoint, ...]


def best_strength(
    strengths: Sequence[float], likeness: Tensor, kept: Tensor, score: Callable[[Tensor, Tensor], Tensor] | None = None
) -> BestStrength:
    """Find the strength at which likeness and prompt are both high.

    Args:
        strengths: The strengths that were painted, rising.
        likeness, kept: (strengths, prompts), see `TradePoint`.
        score: Returns one number for the means of both; None: `score_trade`.

    Returns:
        The best strength, and the curve that it is the top of.
    """
    score = score or score_trade
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
        tops.append(_top(grid, score(likeness.double()[:, drawn].mean(dim=1), kept.double()[:, drawn].mean(dim=1))))
    quantiles = torch.quantile(torch.tensor(tops, dtype=torch.float64), torch.tensor(INTERVAL, dtype=torch.float64))
    low, high = (float(value) for value in quantiles)
    top = _top(grid, score(*means))
    return BestStrength(top, min(low, top), max(high, top), points)


def score_trade(likeness: Tensor, kept: Tensor) -> Tensor:
    """Return likeness times the sixth root of the prompt kept, each between 0 and 1: high only where both are.

    Likeness counts for much more, since a style is seen for certain only where nearly all of the way to it is gone: so
    the best strength is near the one at which a classifier sees style and subject most surely (docs/measuring.md).
    """
    return likeness.clamp(0, 1) * kept.clamp(0, 1) ** KEPT_POWER


def _top(strengths: Tensor, scores: Tensor) -> float:
    """Return where the score is highest: the top of the parabola through the best painted strength and its neighbours.

    Without it the top would nearly always be one of the painted strengths, up to half their distance off.
    """
    best = int(scores.argmax())  # the lowest of several
    if best in {0, len(scores) - 1}:
        return float(strengths[best])
    before, after = (strengths[best + 1 - side] - strengths[best - side] for side in (1, 0))
    rise, fall = ((scores[best + 1 - side] - scores[best - side]) for side in (1, 0))
    left_slope, right_slope = rise / before, fall / after
    slope = (left_slope * after + right_slope * before) / (before + after)
    curvature = 2 * (right_slope - left_slope) / (before + after)
    if curvature >= 0:
        return float(strengths[best])  # three equal scores
    return float((strengths[best] - slope / curvature).clamp(strengths[best - 1], strengths[best + 1]))
