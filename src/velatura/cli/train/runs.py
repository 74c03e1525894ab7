"""Show run folders in `velatura list`, `show` and `resume`; no torch is needed to read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from velatura.cli.screen import say, say_json
from velatura.errors import BadFile, quantity
from velatura.training.run.summary import MEAN_STEPS, RunSummary, find_runs, is_run_folder, read_run
from velatura.training.run.verdict import command_line

RUN_KIND = "run"  # as --kind of `velatura list` takes it
LABEL_WIDTH = 21  # letters


def runs_in(folders: Sequence[Path], search: str | None = None) -> list[RunSummary]:
    """Read the runs in folders, those that cannot be read left out.

    Args:
        folders: Folders to search.
        search: Only runs with this text in their name or path.
    """
    runs: dict[Path, RunSummary] = {}
    for path in (path for folder in folders for path in find_runs(folder)):
        try:
            runs[path] = read_run(path)
        except (BadFile, OSError):  # a folder of another program with such files, or a damaged one; show says why
            continue
    return [run for run in runs.values() if search is None or search.casefold() in f"{run.path}/{run.name}".casefold()]


def run_line(run: RunSummary) -> str:
    """Return a run in one line, with the command that continues it."""
    parts = [f"{RUN_KIND}: {run.overlay_kind} {run.name} on {run.base}", _state(run)]
    if run.best_loss is not None:
        parts.append(f"best at step {run.best_step} (validation loss {run.best_loss:.3g})")
    if run.verdict is not None and run.verdict.strength is not None:
        parts.append(f"serves best at strength {run.verdict.strength:g}")
    parts += [run.next["continue"]] if "continue" in run.next else []
    return ", ".join(parts)


def run_as_json(run: RunSummary) -> dict[str, object]:
    """Return a run as `velatura list --json` prints it, with the keys that files have too."""
    return {"name": run.name, "kind": RUN_KIND, "path": str(run.path), "run": json.loads(run.model_dump_json())}


def show_run(path: Path, *, as_json: bool) -> None:
    """Print what a run folder says of its run."""
    run = read_run(path)
    if as_json:
        say_json(run.model_dump_json(indent=2))
        return
    say(*(f"{label:{LABEL_WIDTH}}{text}" for label, text in _rows(run)))


def choose_run(path: Path) -> Path | None:
    """Return the run folder to resume; list the runs in a folder of runs instead, and what continues them.

    Returns:
        The path, if it is not a folder of runs; None if one run in it can be resumed, whose command was printed.

    Raises:
        BadFile: No run in the folder can be resumed, or several, which were printed.
    """
    path = path.expanduser()
    if is_run_folder(path) or not path.is_dir():
        return path
    runs = runs_in([path])
    if not runs:
        raise BadFile(f"{path} is not a run folder, and holds none: name the folder that train made, runs/NAME")
    unfinished = [run for run in runs if "continue" in run.next]
    say(*(f"{run.path}: {_state(run)}; {run.next['continue']}" for run in unfinished))
    if len(unfinished) == 1:
        return None
    if unfinished:
        raise BadFile(f"{len(unfinished)} runs in {path} can be resumed: name one of them")
    states = ", ".join(f"{run.path.name} is {run.state}" for run in runs[:5])
    raise BadFile(f"no run in {path} can be resumed ({states}{', ...' if len(runs) > 5 else ''}): start a new one")


def _state(run: RunSummary) -> str:
    planned = "" if run.planned_steps is None else f" of {run.planned_steps}"
    if run.state == "finished":
        return f"finished after {quantity(run.steps, 'step')}"
    return f"{run.state} at step {run.steps}{planned}"


def _rows(run: RunSummary) -> Iterator[tuple[str, str]]:
    yield "run", f"{run.path}"
    yield "state", _state(run)
    yield "overlay", f"{run.overlay_kind} {run.name}" + (f", {run.overlay}" if run.overlay else "")
    yield "base", run.base
    yield (
        "pictures",
        run.pictures if run.picture_count is None else f"{run.pictures}, {quantity(run.picture_count, 'picture')}",
    )
    yield "learning rate", run.learning_rate or "unknown, as plan.json cannot be read"
    yield "trained for", f"{run.seconds:.0f} seconds"
    yield from _loss_rows(run)
    for rescue in run.rescues:
        rate = "" if rescue.rate is None else f", at a learning rate of {rescue.rate:.2g}"
        yield "rescue", f"{rescue.because}: went back from step {rescue.step} to {rescue.back_to}{rate}"
    if run.verdict is not None:
        yield from run.verdict.judgement()
    elif run.verdict_problem:
        yield "verdict", run.verdict_problem
    if run.snapshots:
        steps = ", ".join(str(snapshot.step) for snapshot in run.snapshots)
        yield "snapshots", f"at steps {steps}; <{run.overlay_kind}:{run.snapshots[-1].path.stem}:1> calls the last one"
        yield "", f"with {command_line('--library', run.path)}"
    for name in ("strengths.png", "previews.png", "loss.png"):
        if (run.path / name).is_file():
            yield "look at", f"{run.path / name}"
    yield from run.next.items()


def _loss_rows(run: RunSummary) -> Iterator[tuple[str, str]]:
    if run.first_loss is not None and run.last_loss is not None:
        yield "losses", f"{run.first_loss:.4f} at first, {run.last_loss:.4f} at last (means of {MEAN_STEPS} steps)"
    if run.validation:
        losses = ", ".join(f"{loss:.4f} at step {step}" for step, loss in sorted(run.validation.items()))
        yield "validation loss", losses
    if run.high_noise:
        losses = ", ".join(f"{loss:.4f} at step {step}" for step, loss in sorted(run.high_noise.items()))
        yield "at high noise", losses
    if run.best is not None:
        yield "best", f"{run.best}, step {run.best_step}"
