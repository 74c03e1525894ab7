"""The page of a study: the recommendation, the table, the curves, the same prompts for every kind, and the recipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from PIL import Image

from velatura.compare.page import fill_page
from velatura.compare.training_report import picture_tag
from velatura.compare.tune import FIRST_SEED, SAMPLER
from velatura.compare.tune_prompts import tune_prompts
from velatura.errors import quantity
from velatura.formats.open import open_overlay
from velatura.sampling.recipe.recipe import Recipe
from velatura.studies.results import FIGURES, StudyResults, Trial
from velatura.studies.trials import TrialSetup, called_by, painter, sampling_steps

MAX_PROMPTS, MAX_HELD_OUT = 6, 6
THUMBNAIL_PIXELS = 160
CHART_WIDTH, CHART_HEIGHT, MARGIN = 460, 260, 40
NOT_MEASURED = "–"
COLOURS = ("#b4452f", "#2f6db4", "#3c8c4a", "#8a4bb0", "#b08a2f")


class StudyReport:
    """Makes the page of a study again and again while its trials go on; the pictures of a kind are painted once.

    Args:
        setup: What all trials share.
    """

    def __init__(self, setup: TrialSetup) -> None:
        self._setup = setup
        self._held_out_row = _picture_row("held out", setup.held_out[:MAX_HELD_OUT])
        self._base_row = ""
        self._painted_rows: dict[str, str] = {}  # by the file of the overlay

    def page(self, results: StudyResults) -> str:
        """Return the page as one HTML text that needs no other file."""
        other = ""
        if results.together:
            other = f" The rows together and other left are measured with {results.together} attached too."
        return fill_page(
            "velatura.studies",
            "study.html",
            f"Which kind serves {self._setup.name}?",
            recommendation=escape(results.recommendation()),
            facts=escape(
                f"{results.training_pictures} pictures to train on and {results.held_out_pictures} held out, on "
                f"{results.base}; {results.budget}. ± is the standard deviation over seeds.{other}"
            ),
            head="".join(f"<th>{escape(kind)}</th>" for kind in results.kinds),
            rows="\n".join(_rows(results)),
            trade=_trade_chart(results),
            legend=" ".join(
                f'<span style="color:{_colour(number)}">&#9632;</span> {escape(kind)}'
                for number, kind in enumerate(results.kinds)
            ),
            painting=escape(self._painting()),
            pictures="\n".join(self._rows_of_pictures(results)),
            recipes="\n".join(map(_recipe, results.trials)),
        )

    def _painting(self) -> str:
        """Return the recipe of the pictures, all of which have the prompt below them."""
        recipe = Recipe(prompt="", steps=sampling_steps(self._setup.base), sampler=SAMPLER)
        settings = f"Sampler {recipe.sampler}, {quantity(recipe.steps, 'step')}, guidance {recipe.guidance:g}"
        seeds = f"the first picture of each row has seed {FIRST_SEED}, the next one {FIRST_SEED + 1}, and so on"
        return f"{settings}; {seeds}."

    def _rows_of_pictures(self, results: StudyResults) -> list[str]:
        """Return rows of the same prompts and seeds, for the first overlay of each kind at its best strength."""
        painted = [self._painted_row(results.of_kind(kind)[0]) for kind in results.kinds]
        return [self._held_out_row, self._base_row, *painted]

    def _painted_row(self, trial: Trial) -> str:
        if trial.file in self._painted_rows:
            return self._painted_rows[trial.file]
        setup = self._setup
        overlay = open_overlay(setup.folder / trial.file)
        is_tiny, words = setup.base.family.name == "tiny", called_by(setup, trial.kind)
        prompts = tune_prompts(overlay, setup.captions, is_tiny=is_tiny, called_by=words)[:MAX_PROMPTS]
        paints = painter(setup, overlay, prompts)
        if not self._base_row:
            texts = [prompt.text for prompt in prompts]
            self._base_row = _picture_row(f"{setup.base.name} alone", paints.paint(0.0), texts)
        strength = trial.figures["strength"]
        called = [prompt.called for prompt in prompts]
        row = _picture_row(f"{trial.kind} at {strength:g}", paints.paint(strength), called)
        self._painted_rows[trial.file] = row
        return row


def _rows(results: StudyResults) -> Iterator[str]:
    for figure in results.measured_figures():
        cells = "".join(f"<td>{escape(results.describe(kind, figure) or NOT_MEASURED)}</td>" for kind in results.kinds)
        yield f"<tr><th>{escape(figure.replace('_', ' '))}<small>{escape(FIGURES[figure])}</small></th>{cells}</tr>"


def _trade_chart(results: StudyResults) -> str:
    """Draw prompt kept over likeness, a line for each trial and a dot at its best strength."""
    lines: list[str] = []
    for number, kind in enumerate(results.kinds):
        for trial in results.of_kind(kind):
            curve = trial.curve
            points = " ".join(
                f"{_x(near):.1f},{_y(own):.1f}" for near, own in zip(curve.likeness, curve.kept, strict=True)
            )
            dot = trial.figures.get("likeness", 0.0), trial.figures.get("kept", 1.0)
            lines.append(f'<polyline points="{points}" stroke="{_colour(number)}"/>')
            lines.append(f'<circle cx="{_x(dot[0]):.1f}" cy="{_y(dot[1]):.1f}" r="5" fill="{_colour(number)}"/>')
    for share in (0.0, 0.5, 1.0):
        lines.append(f'<text x="{_x(share):.0f}" y="{CHART_HEIGHT - 12}" text-anchor="middle">{share:g}</text>')
        lines.append(f'<text x="{MARGIN - 8}" y="{_y(share) + 4:.0f}" text-anchor="end">{share:g}</text>')
    lines.append(f'<text x="{CHART_WIDTH - 8}" y="{CHART_HEIGHT - 28}" text-anchor="end">likeness</text>')
    lines.append(f'<text x="{MARGIN}" y="14">prompt kept</text>')
    return f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img">{"".join(lines)}</svg>'


def _x(likeness: float) -> float:
    return MARGIN + min(1.1, max(-0.1, likeness)) / 1.1 * (CHART_WIDTH - MARGIN - 16)


def _y(kept: float) -> float:
    return CHART_HEIGHT - MARGIN - min(1.1, max(-0.1, kept)) / 1.1 * (CHART_HEIGHT - MARGIN - 24)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _picture_row(label: str, images: Sequence[Image.Image], texts: Sequence[str] = ()) -> str:
    """Return pictures under a label, each with its prompt under it if there are prompts."""
    descriptions = texts or [label] * len(images)
    tags = [picture_tag(_thumbnail(image), text) for image, text in zip(images, descriptions, strict=True)]
    captions = [f"<figcaption>{escape(text)}</figcaption>" if texts else "" for text in descriptions]
    figures = "".join(f"<figure>{tag}{caption}</figure>" for tag, caption in zip(tags, captions, strict=True))
    return f'<h3>{escape(label)}</h3><div class="many">{figures}</div>'


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return small


def _recipe(trial: Trial) -> str:
    link = f'<a href="{escape(trial.file)}">{escape(trial.file)}</a>'
    return f"<p>{link}</p><pre>{escape(trial.command)}</pre>"
