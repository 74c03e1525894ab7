"""The report of a training run as one HTML file that needs no other file."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from PIL.Image import Image

from velatura.compare.loss_curve import loss_curve
from velatura.compare.page import fill_page


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
