"""Plot of a run's losses: every step faint, their running mean strong, validation losses as dots.

The validation losses at high noise, which are much smaller, have a plot of their own below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = WIDTH, HEIGHT = 960, 480
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 44, 40
LOWER_HEIGHT, GAP = 110, 40  # of the plot of high noise, and above it
LOSS_COLOR, MEAN_COLOR, VALIDATION_COLOR, GRID_COLOR, TEXT_COLOR = "#c9d6e8", "#1f5fb4", "#c2410c", "#e5e5e5", "#404040"
HIGH_NOISE_COLOR = "#15803d"
LEGEND = (("a step's loss", LOSS_COLOR), ("their mean", MEAN_COLOR), ("validation", VALIDATION_COLOR))
HIGH_NOISE_LEGEND = ("validation at high noise", HIGH_NOISE_COLOR)
LEGEND_WIDTH = 160  # of one entry
GRID_LINE_COUNT, LOWER_GRID_LINE_COUNT = 5, 2
MEAN_WINDOWS_PER_RUN = 20  # the running mean covers about a twentieth of the steps


def loss_plot(
    losses: Sequence[float], validation_losses: Mapping[int, float], high_noise_losses: Mapping[int, float]
) -> Image.Image:
    """Draw the losses of all steps.

    Args:
        losses: Loss of every step, at least one.
        validation_losses, high_noise_losses: Validation losses by step, 0 for the untrained overlay: at all noise
            levels, and at high noise; empty for none.
    """
    points = {step: loss for step, loss in validation_losses.items() if step <= len(losses)}
    high_points = {step: loss for step, loss in high_noise_losses.items() if step <= len(losses)}
    values, lower_top = [*losses, *points.values()], HEIGHT - BOTTOM - LOWER_HEIGHT
    axes = _Axes(
        max(1, len(losses)), min(values), max(values), TOP, lower_top - GAP if high_points else HEIGHT - BOTTOM
    )
    image = Image.new("RGB", IMAGE_SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    _draw_grid(draw, font, axes, GRID_LINE_COUNT)
    if high_points:
        lower = _Axes(axes.steps, min(high_points.values()), max(high_points.values()), lower_top, HEIGHT - BOTTOM)
        _draw_grid(draw, font, lower, LOWER_GRID_LINE_COUNT)
        for step, loss in high_points.items():
            draw.circle(lower.point(step, loss), 5, HIGH_NOISE_COLOR)
    for step in sorted({1, (1 + axes.steps) // 2, axes.steps}):
        draw.text((axes.x(step), HEIGHT - BOTTOM + 8), f"{step}", TEXT_COLOR, font, anchor="ma")
    draw.line([axes.point(step, loss) for step, loss in enumerate(losses, 1)], LOSS_COLOR, 1)
    means = enumerate(_running_means(losses), 1)
    draw.line([axes.point(step, mean) for step, mean in means], MEAN_COLOR, 3, joint="curve")
    for step, loss in points.items():
        draw.circle(axes.point(step, loss), 5, VALIDATION_COLOR)
    for index, (text, color) in enumerate((*LEGEND, HIGH_NOISE_LEGEND) if high_points else LEGEND):
        left = LEFT + LEGEND_WIDTH * index
        draw.rectangle([left, 16, left + 14, 30], color)
        draw.text((left + 20, 23), text, TEXT_COLOR, font, anchor="lm")
    return image


def _draw_grid(
    draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, axes: _Axes, count: int
) -> None:
    """Draw lines across a plot, with their losses on the left."""
    for loss in axes.grid_lines(count):
        draw.line([(LEFT, axes.y(loss)), (WIDTH - RIGHT, axes.y(loss))], GRID_COLOR)
        draw.text((LEFT - 8, axes.y(loss)), f"{loss:.3g}", TEXT_COLOR, font, anchor="rm")


@dataclass(frozen=True)
class _Axes:
    """Positions in the picture; step 0, the untrained overlay, is on the left edge like step 1.

    Attributes:
        steps: Steps of the run.
        low, high: Lowest and highest loss.
        top, bottom: Heights of these in the picture, in pixels: of the highest and of the lowest loss.
    """

    steps: int
    low: float
    high: float
    top: int
    bottom: int

    def x(self, step: int) -> float:
        return LEFT + (max(step, 1) - 1) / max(1, self.steps - 1) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        return self.bottom - (loss - self.low) / ((self.high - self.low) or 1) * (self.bottom - self.top)

    def point(self, step: int, loss: float) -> tuple[float, float]:
        return self.x(step), self.y(loss)

    def grid_lines(self, count: int) -> Iterator[float]:
        return (self.low + (self.high - self.low) * number / (count - 1) for number in range(count))


def _running_means(losses: Sequence[float]) -> Iterator[float]:
    """Yield the exponential mean up to each step, without bias from the start (as Adam corrects it)."""
    decay = 1 - 1 / max(1.0, len(losses) / MEAN_WINDOWS_PER_RUN)
    total = weight = 0.0
    for loss in losses:
        total = decay * total + (1 - decay) * loss
        weight = decay * weight + (1 - decay)
        yield total / weight
