"""A run's losses as a picture: each step faint, their running mean strong, the validation loss as dots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIZE = WIDTH, HEIGHT = 960, 480
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 44, 40
EACH, MEAN, TRIED, GRID, INK = "#c9d6e8", "#1f5fb4", "#c2410c", "#e5e5e5", "#404040"
LINES = 5
REMEMBERED = 20  # a mean forgets after a twentieth of the steps


def loss_plot(losses: Sequence[float], validations: Mapping[int, float]) -> Image.Image:
    """Draw the losses of all steps, and those of the fixed pictures by step."""
    tried = {step: loss for step, loss in validations.items() if step <= len(losses)}
    values = [*losses, *tried.values()]
    paper = _Paper(max(1, len(losses)), min(values), max(values))
    image = Image.new("RGB", SIZE, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(15)
    for loss in paper.lines():
        draw.line([(LEFT, paper.y(loss)), (WIDTH - RIGHT, paper.y(loss))], GRID)
        draw.text((LEFT - 8, paper.y(loss)), f"{loss:.3g}", INK, font, anchor="rm")
    for step in sorted({1, (1 + paper.steps) // 2, paper.steps}):
        draw.text((paper.x(step), HEIGHT - BOTTOM + 8), f"{step}", INK, font, anchor="ma")
    draw.line([paper.at(step, loss) for step, loss in enumerate(losses, 1)], EACH, 1)
    draw.line([paper.at(step, loss) for step, loss in enumerate(_means(losses), 1)], MEAN, 3, joint="curve")
    for step, loss in tried.items():
        draw.circle(paper.at(step, loss), 5, TRIED)
    for place, (text, color) in enumerate((("a step's loss", EACH), ("their mean", MEAN), ("validation", TRIED))):
        draw.rectangle([LEFT + 160 * place, 16, LEFT + 160 * place + 14, 30], color)
        draw.text((LEFT + 160 * place + 20, 23), text, INK, font, anchor="lm")
    return image


@dataclass(frozen=True)
class _Paper:
    """Where a step's loss falls: steps from left to right, the untrained overlay at step 0 on the left edge too."""

    steps: int
    low: float
    high: float

    def x(self, step: int) -> float:
        return LEFT + (max(step, 1) - 1) / max(1, self.steps - 1) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        return HEIGHT - BOTTOM - (loss - self.low) / ((self.high - self.low) or 1) * (HEIGHT - TOP - BOTTOM)

    def at(self, step: int, loss: float) -> tuple[float, float]:
        return self.x(step), self.y(loss)

    def lines(self) -> Iterator[float]:
        return (self.low + (self.high - self.low) * number / (LINES - 1) for number in range(LINES))


def _means(losses: Sequence[float]) -> Iterator[float]:
    """An exponential mean, unbiased from the first loss on."""
    memory = 1 - 1 / max(1.0, len(losses) / REMEMBERED)
    total = weight = 0.0
    for loss in losses:
        total, weight = memory * total + (1 - memory) * loss, memory * weight + (1 - memory)
        yield total / weight
