"""Runs of trainings as routes and jobs show them: their state, the strength that was found, the tag that calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from velatura.errors import ignore_warnings
from velatura.library.sidecars import read_notes
from velatura.server.errors import hide_paths
from velatura.training.run.previews import Previews
from velatura.training.run.summary import Rescue, RunState, RunSummary, read_run
from velatura.training.run.verdict import Verdict

SHEETS = ("loss.png", "previews.png", "strengths.png")  # pictures that a run folder may have


class RunInfo(BaseModel):
    """A run: what is trained, how far it is, and which pictures of it there are.

    `strength` is the one that was found to serve best. `tag` calls the overlay in a prompt: the finished one, else the
    newest snapshot. `rescues` are the times that the run went back. `previews` has the number of pictures by step.
    `verdict` has the lines of the verdict of a finished run; the fields before it are what it measured and judged.
    """

    run: str
    name: str
    state: RunState
    kind: str
    base: str
    steps: int
    planned_steps: int | None
    learning_rate: str | None
    seconds: float
    first_loss: float | None
    last_loss: float | None
    validation: dict[int, float]
    best_step: int | None
    best_loss: float | None
    rescues: tuple[Rescue, ...]
    snapshots: list[int]
    sheets: list[str]
    previews: dict[int, int]
    strength: float | None
    tag: str | None
    result_step: int | None
    effect: float | None
    prompt_left: float | None
    little_learned: bool
    overpowers: bool
    milder_strength: float | None
    verdict: list[str]


def describe_run_folder(path: Path, root: Path) -> RunInfo:
    """Return what routes show of a run.

    Args:
        path: The run folder.
        root: The folder of all runs.

    Raises:
        BadFile: The log cannot be read.
    """
    with ignore_warnings():
        summary = read_run(path)
    same = {"name", "state", "base", "steps", "planned_steps", "learning_rate", "seconds", "first_loss", "last_loss"}
    more = {"validation", "best_step", "best_loss"}
    return RunInfo(
        run=path.relative_to(root).as_posix(),
        kind=summary.overlay_kind,
        snapshots=[snapshot.step for snapshot in summary.snapshots],
        sheets=[sheet for sheet in SHEETS if (path / sheet).is_file()],
        previews={step: len(row) for step, row in preview_rows(path, summary.name).items()},
        rescues=summary.rescues,
        strength=found_strength(summary),
        tag=run_tag(summary),
        **_describe_verdict(summary.verdict, root),
        **summary.model_dump(include=same | more),
    )


def _describe_verdict(verdict: Verdict | None, root: Path) -> dict[str, Any]:
    """Return what a finished run says of itself, as fields of `RunInfo`."""
    fields = ("result_step", "effect", "prompt_left", "little_learned", "overpowers", "milder_strength")
    if verdict is None:
        return {**dict.fromkeys(fields), "little_learned": False, "overpowers": False, "verdict": []}
    lines = [hide_paths(line, [root]) for line in str(verdict).splitlines()]
    return {**{field: getattr(verdict, field) for field in fields}, "verdict": lines}


def preview_rows(path: Path, name: str) -> dict[int, list[Path]]:
    """Return the previews of a run by step.

    Args:
        path: The run folder.
        name: The name of its overlay.
    """
    return Previews(path / "previews", path / "previews.png", name).rows()


def found_strength(summary: RunSummary) -> float | None:
    """Return the strength that serves best: that beside a run's overlay, else its verdict's; None if neither."""
    if summary.overlay is None:
        return None
    sidecar = summary.overlay.with_suffix(".json")
    noted = read_notes([sidecar]).strength if sidecar.is_file() else None
    return noted if noted is not None or summary.verdict is None else summary.verdict.strength


def run_tag(summary: RunSummary) -> str | None:
    """Return what calls a run's overlay in a prompt, with the strength that was found; None if nothing is there yet."""
    newest = next((snapshot for snapshot in reversed(summary.snapshots) if snapshot.step), None)
    path = summary.overlay or (newest and newest.path)
    if path is None or summary.overlay_kind == "embedding":
        return path and path.stem
    strength = found_strength(summary)
    return f"<{summary.overlay_kind}:{path.stem}:{1 if strength is None else strength:g}>"
