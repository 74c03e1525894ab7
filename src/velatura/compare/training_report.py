"""The report of a training run as one HTML file that needs no other file."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from PIL.Image import Image

from velatura.compare.page import fill_page
from velatura.errors import quantity

CHART_WIDTH, CHART_HEIGHT = 760, 300
LEFT_MARGIN, RIGHT_MARGIN, TOP_MARGIN, BOTTOM_MARGIN = 64, 12, 28, 44


@dataclass(frozen=True)
class Figure:
    """Pictures under one heading, with a text that says what they show."""

    heading: str
    text: str
    pictures: Sequence[Image]


@dataclass(frozen=True)
class TrainingReport:
    """Contents of a report.

    Attributes:
        title: The heading.
        opening: The first paragraph.
        figures: Pictures with headings.
        losses: The loss of each step.
        facts: Facts by name.
        commands: Commands by description.
    """

    title: str
    opening: str
    figures: Sequence[Figure]
    losses: Sequence[float]
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    commands: Mapping[str, str] = field(default_factory=dict[str, str])

    def html(self) -> str:
        """Return the page, with pictures as data URIs and the curve as SVG, so that it needs no network."""
        return fill_page(
            "velatura.compare",
            "report.html",
            self.title,
            opening=escape(self.opening),
            figures="\n".join(map(_figure, self.figures)),
            curve=loss_curve(self.losses),
            facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in self.facts.items()),
            commands="\n".join(map(_command, self.commands, self.commands.values())),
        )


def _figure(figure: Figure) -> str:
    pictures = "\n".join(picture_tag(picture, figure.heading) for picture in figure.pictures)
    css_class = "one" if len(figure.pictures) == 1 else "many"
    return (
        f"<section>\n<h2>{escape(figure.heading)}</h2>\n<p>{escape(figure.text)}</p>\n"
        f'<div class="{css_class}">\n{pictures}\n</div>\n</section>'
    )


def picture_tag(picture: Image, description: str) -> str:
    """Return a picture as an HTML element that contains its pixels."""
    png = io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    data = base64.b64encode(png.getvalue()).decode()
    width, height = picture.size
    return f'<img src="data:image/png;base64,{data}" alt="{escape(description)}" width="{width}" height="{height}">'


def _command(description: str, command: str) -> str:
    return f"<p>{escape(description)}</p>\n<pre>{escape(command)}</pre>"


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
