"""One trial of a sweep: a training that stops where a round ends, and goes on from there in the next round."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from velatura.base.base import Base
from velatura.errors import TrainingDiverged
from velatura.overlays.overlay import Overlay
from velatura.studies.trials import MAKERS, SEEDLESS_KINDS
from velatura.training.plan import Plan
from velatura.training.run.report import Step
from velatura.training.run.summary import is_run_folder, read_high_noise_errors, read_run
from velatura.training.train import resume, train


class RoundEnd(KeyboardInterrupt):  # which ends a training and keeps it to go on from
    """Raised in a training at the last step of a round; the run keeps a snapshot of it."""


class TrialJob(NamedTuple):
    """All that training a trial needs besides the base; it can be sent to another process.

    Attributes:
        number: The number of the trial.
        kind: The kind of overlay.
        name: What the overlay is called.
        arguments: The arguments by which the overlay is made.
        plan: The plan of the whole training.
        data: The folder of the training pictures.
        folder: The run folder.
        until: The step to train to.
    """

    number: int
    kind: str
    name: str
    arguments: dict[str, Any]
    plan: Plan
    data: Path
    folder: Path
    until: int


class TrialState(NamedTuple):
    """How far a trial is, as its run folder says."""

    steps: int
    errors: dict[int, tuple[float, ...]]
    seconds: float
    rescues: int
    problem: str | None = None


def make_overlay(base: Base, job: TrialJob) -> Overlay:
    """Return the untrained overlay of a trial."""
    options = {} if job.kind in SEEDLESS_KINDS else {"seed": job.plan.seed}
    return MAKERS[job.kind](base, name=job.name, **job.arguments, **options)


def train_trial(base: Base, job: TrialJob, on_step: Callable[[Step], None] | None = None) -> TrialState:
    """Train a trial to the end of its round, from where it was; the round's last step has a snapshot and a validation.

    The steps are those of one uninterrupted training by the whole plan, bit for bit.
    """

    def stop_at_the_end(step: Step) -> None:
        if on_step:
            on_step(step)
        if job.until <= step.done < step.total:
            raise RoundEnd

    state = read_state(job)
    if is_at_end(job, state):
        return state
    try:
        if is_run_folder(job.folder):
            resume(base, job.folder, on_step=stop_at_the_end)
        else:
            train(base, make_overlay(base, job), job.data, job.plan, out=job.folder, on_step=stop_at_the_end)
    except RoundEnd:
        pass
    except TrainingDiverged as error:
        return read_state(job)._replace(problem=str(error))
    return read_state(job)


def is_at_end(job: TrialJob, state: TrialState) -> bool:
    """Return True if a trial is at the end of its round; of the last round the overlay must be there too."""
    return job.until in state.errors and (job.until < job.plan.steps or read_run(job.folder).overlay is not None)


def read_state(job: TrialJob) -> TrialState:
    """Read how far a trial is."""
    if not is_run_folder(job.folder):
        return TrialState(0, {}, 0.0, 0)
    run = read_run(job.folder)
    errors = {step: rows for step, rows in read_high_noise_errors(job.folder).items() if step <= run.steps}
    return TrialState(run.steps, errors, run.seconds, len(run.rescues))
