"""What a process does that follows another one in training: it learns the same, and keeps nothing on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from velatura.overlays.overlay import Overlay
from velatura.training.course import Run
from velatura.training.processes import OVER, Team
from velatura.training.pupil import Pupil
from velatura.training.signals import stopping

BROKEN_OFF = "the training was broken off by the process that leads it, which says why"


class Beginning(NamedTuple):
    """What a process is told of a run that is resumed, as it cannot read the run's folder itself."""

    plan: str
    folder: str
    over_others: bool
    overlay: Overlay


def heard_beginning(team: Team) -> Beginning:
    """What the leading process says of the run that it resumes."""
    name, arguments = team.told(None)
    if name == OVER:
        raise KeyboardInterrupt(BROKEN_OFF)
    return Beginning(*arguments)


def followed(pupil: Pupil, out: Path) -> Run:
    """Learn what the leading process learns; the run's losses and files are there alone."""
    pupil.overlay.train()
    try:
        with stopping() as stop:
            pupil.team.stop = stop
            if not pupil.team.follow(pupil):
                raise KeyboardInterrupt(BROKEN_OFF)
        pupil.settle()
    finally:
        pupil.overlay.eval()
    return Run(pupil.overlay, out, [], out)
