"""Plot of a run's losses: every step faint, their running mean strong, validation losses as dots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = WIDTH, HEIGHT = 960, 480
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 44, 40
LOSS_COLOR, MEAN_COLOR, VALIDATION_COLOR, GRID_COLOR, TEXT_COLOR = "#c9d6e8", "#1f5fb4", "#c2410c", "#e5e5e5", "#404040"
LEGEND = (("a step's loss", LOSS_COLOR), ("their mean", MEAN_COLOR), ("validation", VALIDATION_COLOR))
GRID_LINE_COUNT = 5
MEAN_WINDOWS_PER_RUN = 20  # the running mean covers about a twentieth of the steps


def loss_plot(losses: Sequence[float], validation_losses: Mapping[int, float]) -> Image.Image:
    """Draw the losses of all steps.

    Args:
        losses: Loss of every step, at least one.
        validation_losses: Validation losses by step, 0 for the untrained overlay.
    """
    points = {step: loss for step, loss in validation_losses.items() if step <= len(losses)}
    values = [*losses, *points.values()]
    axes = _Axes(max(1, len(losses)), min(values), max(values))
    image = Image.new("RGB", IMAGE_SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for loss in axes.grid_lines():
        draw.line([(LEFT, axes.y(loss)), (WIDTH - RIGHT, axes.y(loss))], GRID_COLOR)
        draw.text((LEFT - 8, axes.y(loss)), f"{loss:.3g}", TEXT_COLOR, font, anchor="rm")
    for step in sorted({1, (1 + axes.steps) // 2, axes.steps}):
        draw.text((axes.x(step), HEIGHT - BOTTOM + 8), f"{step}", TEXT_COLOR, font, anchor="ma")
    draw.line([axes.point(step, loss) for step, loss in enumerate(losses, 1)], LOSS_COLOR, 1)
    means = enumerate(_running_means(losses), 1)
    draw.line([axes.point(step, mean) for step, mean in means], MEAN_COLOR, 3, joint="curve")
    for step, loss in points.items():
        draw.circle(axes.point(step, loss), 5, VALIDATION_COLOR)
    for index, (text, color) in enumerate(LEGEND):
        left = LEFT + 160 * index
        draw.rectangle([left, 16, left + 14, 30], color)
        draw.text((left + 20, 23), text, TEXT_COLOR, font, anchor="lm")
    return image


@dataclass(frozen=True)
class _Axes:
    """Positions in the picture; step 0, the untrained overlay, is on the left edge like step 1."""

    steps: int
    low: float
    high: float

    def x(self, step: int) -> float:
        return LEFT + (max(step, 1) - 1) / max(1, self.steps - 1) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        return HEIGHT - BOTTOM - (loss - self.low) / ((self.high - self.low) or 1) * (HEIGHT - TOP - BOTTOM)

    def point(self, step: int, loss: float) -> tuple[float, float]:
        return self.x(step), self.y(loss)

    def grid_lines(self) -> Iterator[float]:
        return (self.low + (self.high - self.low) * number / (GRID_LINE_COUNT - 1) for number in range(GRID_LINE_COUNT))


def _running_means(losses: Sequence[float]) -> Iterator[float]:
    """Yield the exponential mean up to each step, without bias from the start (as Adam corrects it)."""
    decay = 1 - 1 / max(1.0, len(losses) / MEAN_WINDOWS_PER_RUN)
    total = weight = 0.0
    for loss in losses:
        total = decay * total + (1 - decay) * loss
        weight = decay * weight + (1 - decay)
        yield total / weight
