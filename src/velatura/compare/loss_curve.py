"""Draw a loss curve as SVG, for a page without scripts."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from velatura.errors import quantity

CHART_WIDTH, CHART_HEIGHT = 760, 300
LEFT_MARGIN, RIGHT_MARGIN, TOP_MARGIN, BOTTOM_MARGIN = 64, 12, 28, 44


def loss_curve(losses: Sequence[float]) -> str:
    """Return the SVG of a curve: the losses as a faint line, their running mean as a strong one, and both axes."""
    assert losses
    chart = _Chart(steps=len(losses), low=min(losses), high=max(losses))
    steps = quantity(len(losses), "step")
    return "\n".join(
        [
            f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img" aria-label="The loss of {steps}">',
            *chart.grid_lines(),
            f'<polyline class="each" points="{chart.points(losses)}"/>',
            f'<polyline class="mean" points="{chart.points(running_mean(losses))}"/>',
            "</svg>",
        ]
    )


def running_mean(values: Sequence[float], *, parts: int = 20) -> list[float]:
    """Return the exponential running means of values, unbiased from the first value on.

    Args:
        values: The values.
        parts: The mean covers about this part of all values: 20 stands for a twentieth.
    """
    decay = 1 - 1 / max(1.0, len(values) / parts)
    total, weight, means = 0.0, 0.0, list[float]()
    for value in values:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        means.append(total / weight)
    return means


@dataclass(frozen=True)
class _Chart:
    """Coordinates of a chart: steps from left to right, losses from the bottom up."""

    steps: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return LEFT_MARGIN + (step - 1) / max(1, self.steps - 1) * (CHART_WIDTH - LEFT_MARGIN - RIGHT_MARGIN)

    def y(self, loss: float) -> float:
        share = (loss - self.low) / ((self.high - self.low) or 1)
        return CHART_HEIGHT - BOTTOM_MARGIN - share * (CHART_HEIGHT - TOP_MARGIN - BOTTOM_MARGIN)

    def points(self, losses: Sequence[float]) -> str:
        return " ".join(f"{self.x(step):.1f},{self.y(loss):.1f}" for step, loss in enumerate(losses, 1))

    def grid_lines(self) -> Iterator[str]:
        for loss in ticks(self.low, self.high):
            yield f'<path class="grid" d="M{LEFT_MARGIN} {self.y(loss):.1f}H{CHART_WIDTH - RIGHT_MARGIN}"/>'
            yield f'<text x="{LEFT_MARGIN - 8}" y="{self.y(loss) + 4:.1f}" text-anchor="end">{loss:g}</text>'
        for step in ticks(1, self.steps):
            y = CHART_HEIGHT - BOTTOM_MARGIN + 20
            yield f'<text x="{self.x(step):.1f}" y="{y}" text-anchor="middle">{step:g}</text>'
        yield f'<text x="{CHART_WIDTH - RIGHT_MARGIN}" y="{CHART_HEIGHT - 4}" text-anchor="end">steps</text>'
        yield f'<text x="{LEFT_MARGIN - 8}" y="14" text-anchor="end">loss</text>'


def ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Return about `count` round numbers between low and high: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    power = 10 ** math.floor(math.log10((high - low) / count))
    tick_step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= count)
    first, last = math.ceil(low / tick_step), math.floor(high / tick_step)
    return [float(f"{tick_step * multiple:.12g}") for multiple in range(first, last + 1)]
