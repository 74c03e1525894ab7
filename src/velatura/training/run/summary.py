"""Summary of a run folder, read without its lock and without torch, whatever state the run is in."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Literal, cast

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from velatura.base.open_options import OpenOptions
from velatura.errors import BadFile, VelaturaError, ignore_warnings
from velatura.library.model_files import SKIPPED_FOLDERS
from velatura.training.plan import Plan
from velatura.training.run.log import LOCK_NAME, read_records
from velatura.training.run.recorded_base import RecordedBase
from velatura.training.run.snapshots import list_snapshots
from velatura.training.run.stored_verdict import read_verdict
from velatura.training.run.verdict import Verdict, a1111_command, command_line, sheet_command

RunState = Literal["running", "interrupted", "finished"]

LOG_NAME = "log.jsonl"
MEAN_STEPS = 20  # steps in the means of the first and the last losses; the loss of one step says little


class Rescue(BaseModel):
    """One time that a run went back to a snapshot.

    Attributes:
        back_to: The step of the snapshot.
        step: The step that the run had reached.
        because: What was wrong, in words.
        rate: The highest learning rate from then on, None if the plan cannot be read.
    """

    model_config = ConfigDict(frozen=True)

    back_to: int
    step: int
    because: str
    rate: float | None = None


class RunSnapshot(BaseModel):
    """A complete snapshot: its step, and the path of its overlay."""

    model_config = ConfigDict(frozen=True)

    step: int
    path: Path


class RunSummary(BaseModel):
    """Summary of a run, from its folder.

    Attributes:
        path: The run folder.
        name: The name of the overlay's files, as a tag in a prompt names it.
        state: "running" while a process uses the folder, else "interrupted" until the overlay is written.
        overlay_kind: The kind of overlay.
        base: The name of the base.
        pictures: The folder of the pictures.
        picture_count: Their number, repeats included.
        steps: Steps taken.
        planned_steps: Steps of the whole run, None if the plan cannot be read.
        learning_rate: The learning rate of the plan.
        seconds: How long the run has trained.
        first_loss, last_loss: Means over the first and the last steps, `MEAN_STEPS` at most.
        validation: Validation losses by step, 0 for the untrained overlay.
        high_noise: Those at timesteps in the noisier half of the schedule; empty for runs of older versions.
        best: The overlay with the lowest validation loss, if there is one.
        best_step, best_loss: Its step and its validation loss, as far as the log tells.
        rescues: The times that the run went back.
        snapshots: Complete snapshots, by step.
        overlay: The final overlay of a finished run.
        verdict: What a finished run said of itself; None for runs of older versions, and if it cannot be read.
        verdict_problem: Why it cannot be read, if it is there.
        next: Commands for what to do next, by what they do.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    name: str
    state: RunState
    overlay_kind: str
    base: str
    pictures: str
    picture_count: int | None
    steps: int
    planned_steps: int | None
    learning_rate: str | None
    seconds: float
    first_loss: float | None
    last_loss: float | None
    validation: dict[int, float]
    high_noise: dict[int, float]
    best: Path | None
    best_step: int | None
    best_loss: float | None
    rescues: tuple[Rescue, ...]
    snapshots: tuple[RunSnapshot, ...]
    overlay: Path | None
    verdict: Verdict | None = None
    verdict_problem: str = ""
    next: dict[str, str] = {}


def is_run_folder(path: str | os.PathLike[str]) -> bool:
    """Return True if a path is a folder that a training made."""
    path = Path(path).expanduser()
    return (path / LOG_NAME).is_file() and (path / "plan.json").is_file()


def find_runs(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the run folders in a folder and below it, itself included, sorted by path; hidden folders are skipped."""
    runs: list[Path] = []
    for directory, subfolders, names in os.walk(Path(folder).expanduser()):
        subfolders[:] = sorted(name for name in subfolders if name[0] != "." and name not in SKIPPED_FOLDERS)
        if LOG_NAME in names and is_run_folder(directory):
            runs.append(Path(directory))
            subfolders.clear()
    return runs


def read_run(path: str | os.PathLike[str]) -> RunSummary:
    """Read a run folder without changing it, also while a training uses it.

    Raises:
        BadFile: The path is not a run folder, or its log has no header.
    """
    path = Path(path).expanduser()
    if not is_run_folder(path):
        raise BadFile(f"{path} is not a run folder: name a folder with log.jsonl and plan.json, as train makes it")
    records = read_records(path / LOG_NAME)
    header = records[0] if records else {}
    name = str(header.get("files") or "")
    if not name or Path(name).name != name:  # a name with folders in it could lead out of the run
        raise BadFile(f"{path / LOG_NAME} has no valid header, so nothing can be said of the run: see its files")
    plan = _read_plan(path / "plan.json")
    overlay, best = path / f"{name}.safetensors", path / "snapshots" / f"{name}-best.safetensors"
    losses, validation = _losses(records), _validation(records, "validation")
    high_noise = _validation(records, "high_noise")
    best_step, best_loss = _lowest(records)
    rescues = tuple(_rescues(records, max(plan.step_rates()) if plan else None))
    verdict, verdict_problem = _read_verdict(path) if overlay.is_file() else (None, "")
    state: RunState = "running" if _is_locked(path) else "finished" if overlay.is_file() else "interrupted"
    summary = RunSummary(
        path=path,
        name=name,
        state=state,
        overlay_kind=_kind(header),
        base=str(header.get("base") or "unknown"),
        pictures=str(header.get("folder") or ""),
        picture_count=_integer(header, "pictures"),
        steps=len(losses),
        planned_steps=plan.rates().end if plan else None,
        learning_rate=plan.learning_rate if plan else None,
        seconds=max((seconds for record in records if (seconds := _number(record, "seconds")) is not None), default=0),
        first_loss=fmean(losses[:MEAN_STEPS]) if losses else None,
        last_loss=fmean(losses[-MEAN_STEPS:]) if losses else None,
        validation=validation,
        high_noise=high_noise,
        best=best if best.is_file() else None,
        best_step=best_step if best.is_file() else None,
        best_loss=best_loss if best.is_file() else None,
        rescues=rescues,
        snapshots=tuple(
            RunSnapshot(step=snapshot.step, path=snapshot.path) for snapshot in list_snapshots(path / "snapshots", name)
        ),
        overlay=overlay if overlay.is_file() else None,
        verdict=verdict,
        verdict_problem=verdict_problem,
    )
    return summary.model_copy(update={"next": _next_commands(summary, plan, header)})


def read_high_noise_errors(path: str | os.PathLike[str]) -> dict[int, tuple[float, ...]]:
    """Return the validation errors at high noise by step, one for each row; empty for runs of older versions.

    Args:
        path: A run folder. The rows of two runs are the same pictures, noise and timesteps if they have the same
            validation pictures.
    """
    errors: dict[int, tuple[float, ...]] = {}
    for record in read_records(Path(path).expanduser() / LOG_NAME):
        back_to, step = _integer(record, "back_to"), _integer(record, "validated")
        values = record.get("high_noise_errors")
        if back_to is not None:
            errors = {step: rows for step, rows in errors.items() if step <= back_to}
        if step is not None and isinstance(values, list):
            errors[step] = tuple(float(value) for value in cast("list[float]", values))
    return errors


def _next_commands(run: RunSummary, plan: Plan | None, header: Mapping[str, object]) -> dict[str, str]:
    """Return commands for what to do next, by what they do."""
    commands: dict[str, str] = {}
    if run.state == "interrupted" and run.snapshots:
        commands["continue"] = command_line("velatura", "resume", run.path)
    if run.overlay is None or run.state == "running":
        return commands
    preview_lines = ((plan and plan.preview_prompt) or "").splitlines()
    prompt = next(filter(str.strip, preview_lines), "a house by a lake")
    if run.overlay_kind == "embedding" and run.name not in prompt:
        prompt = f"{prompt}, {run.name}"
    if not (run.path / "strengths.png").is_file():
        location, options = _recorded_base(run, header)
        commands["compare strengths"] = sheet_command(run.overlay_kind, run.overlay, prompt, location, options)
    if not run.overlay.with_suffix(".pt").is_file():
        commands["for A1111"] = a1111_command(run.overlay_kind, run.overlay)
    return {purpose: command for purpose, command in commands.items() if command}


def _recorded_base(run: RunSummary, header: Mapping[str, object]) -> tuple[str, OpenOptions]:
    """Return where the base of a run is, and how it was opened; its name alone if the header is damaged."""
    with suppress(BadFile):
        recorded = RecordedBase.from_header(header)
        return recorded.location, recorded.options
    return run.base, OpenOptions()


def _read_verdict(path: Path) -> tuple[Verdict | None, str]:
    """Return the verdict of a finished run, or why it cannot be read."""
    try:
        return read_verdict(path), ""
    except BadFile as error:
        return None, str(error)


def _read_plan(path: Path) -> Plan | None:
    """Return the plan of a run, None if it cannot be read."""
    with ignore_warnings():  # the run itself warned of them
        try:
            return Plan.from_file(path)
        except VelaturaError:
            return None


def _is_locked(path: Path) -> bool:
    """Return True if a process uses the run."""
    if not (path / LOCK_NAME).is_file():
        return False
    lock = FileLock(path / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that nobody can write to, so no training does
        return False
    lock.release()
    return False


def _losses(records: Sequence[Mapping[str, object]]) -> list[float]:
    """Return the loss of every step, without those that a rescue undid."""
    losses: list[float] = []
    for record in records:
        back_to, loss = _integer(record, "back_to"), _number(record, "loss")
        if back_to is not None:
            del losses[max(0, back_to) :]
        elif loss is not None:
            losses.append(loss)
    return losses


def _validation(records: Sequence[Mapping[str, object]], part: str) -> dict[int, float]:
    losses: dict[int, float] = {}
    for record in records:
        back_to = _integer(record, "back_to")
        if back_to is not None:
            losses = {step: loss for step, loss in losses.items() if step <= back_to}
        step, loss = _integer(record, "validated"), _number(record, part)
        if step is not None and loss is not None:
            losses[step] = loss
    return losses


def _lowest(records: Sequence[Mapping[str, object]]) -> tuple[int | None, float | None]:
    """Return the step and the value of the lowest validation loss, also if a rescue went back beyond it."""
    best_step, best_loss = None, math.inf
    for record in records:
        step, loss = _integer(record, "validated"), _number(record, "validation")
        if step is not None and loss is not None and loss < best_loss:
            best_step, best_loss = step, loss
    return best_step, None if best_step is None else best_loss


def _rescues(records: Sequence[Mapping[str, object]], planned_rate: float | None) -> list[Rescue]:
    rescues: list[Rescue] = []
    for record in records:
        back_to, step, factor = _integer(record, "back_to"), _integer(record, "from"), _number(record, "factor")
        if back_to is not None and step is not None:
            rate = None if planned_rate is None or factor is None else planned_rate * factor
            rescues.append(Rescue(back_to=back_to, step=step, because=str(record.get("because") or ""), rate=rate))
    return rescues


def _kind(header: Mapping[str, object]) -> str:
    card = header.get("overlay")
    return str(cast("dict[str, object]", card).get("kind") or "overlay") if isinstance(card, dict) else "overlay"


def _integer(record: Mapping[str, object], key: str) -> int | None:
    value = record.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(record: Mapping[str, object], key: str) -> float | None:
    """Return a finite number of a record, None if it has none."""
    value = record.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)
