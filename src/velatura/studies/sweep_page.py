"""The page of a sweep: the winner, the table of trials, and their losses by step."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from velatura.compare.page import fill_page
from velatura.studies.sweep_results import SweepResults, SweepTrial

CHART_WIDTH, CHART_HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 28  # margins of the chart


def sweep_page(results: SweepResults) -> str:
    """Return the page as one HTML text that needs no other file."""
    head, *rows = results.table()
    rounds = ", ".join(map(str, results.rounds))
    return fill_page(
        "velatura.studies",
        "sweep.html",
        f"Which settings of a {results.kind} learn best?",
        recommendation=escape(results.recommendation()),
        facts=escape(
            f"{len(results.trials)} trials on {results.base}, judged at steps {rounds}; one in {results.factor} went "
            f"on from each round. Pictures: {results.pictures}."
        ),
        head="".join(f"<th>{escape(cell)}</th>" for cell in head),
        rows="\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows),
        chart=_chart(results),
        command=escape(results.winner.command),
    )


def _chart(results: SweepResults) -> str:
    """Draw the loss of every trial by step, the winner's last, on top of the others."""
    losses = [trial.loss(step) for trial in results.trials for step in trial.errors]
    if not losses:
        return '<p class="soft">Nothing is measured yet.</p>'
    lowest, highest = min(losses), max(losses)
    winner = results.winner
    lines: list[str] = []
    for trial in [*(trial for trial in results.trials if trial is not winner), winner]:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in _points(trial, results.rounds[-1], lowest, highest))
        mark = ' class="winner"' if trial is winner else ""
        lines.append(
            f'<polyline points="{points}"{mark}><title>{escape(f"trial {trial.number}: {trial}")}</title></polyline>'
        )
    for loss in (lowest, highest):
        y = _height(loss, lowest, highest)
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{loss:.4f}</text>')
    for step in (0, results.rounds[-1]):
        x = LEFT + step / results.rounds[-1] * (CHART_WIDTH - LEFT - RIGHT)
        lines.append(f'<text x="{x:.0f}" y="{CHART_HEIGHT - 6}" text-anchor="middle">{step}</text>')
    return f'<svg viewBox="0 0 {CHART_WIDTH} {CHART_HEIGHT}" role="img">{"".join(lines)}</svg>'


def _points(trial: SweepTrial, last_step: int, lowest: float, highest: float) -> Iterator[tuple[float, float]]:
    for step in sorted(trial.errors):
        x = LEFT + step / last_step * (CHART_WIDTH - LEFT - RIGHT)
        yield x, _height(trial.loss(step), lowest, highest)


def _height(loss: float, lowest: float, highest: float) -> float:
    share = (highest - loss) / (highest - lowest) if highest > lowest else 0.5
    return TOP + share * (CHART_HEIGHT - TOP - BOTTOM)
