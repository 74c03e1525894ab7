"""What a process does that follows another one in training: it learns the same, and keeps nothing on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from velatura.overlays.overlay import Overlay
from velatura.training.course import Run
from velatura.training.processes import OVER, Team
from velatura.training.pupil import Trainer
from velatura.training.signals import catch_signals

LEADER_STOPPED = "the training was broken off by the process that leads it, which says why"


class RunStart(NamedTuple):
    """What a process is told of a run that is resumed, as it cannot read the run's folder itself."""

    plan: str
    folder: str
    over_others: bool
    overlay: Overlay


def receive_run_start(team: Team) -> RunStart:
    """What the leading process says of the run that it resumes."""
    name, arguments = team.broadcast(None)
    if name == OVER:
        raise KeyboardInterrupt(LEADER_STOPPED)
    return RunStart(*arguments)


def follow_run(trainer: Trainer, out: Path) -> Run:
    """Learn what the leading process learns; the run's losses and files are there alone."""
    trainer.overlay.train()
    try:
        with catch_signals() as stop:
            trainer.team.stop = stop
            if not trainer.team.follow(trainer):
                raise KeyboardInterrupt(LEADER_STOPPED)
        trainer.finalize_weights()
    finally:
        trainer.overlay.eval()
    return Run(trainer.overlay, out, [], out)
