"""Reports of a training: a Step after every step, and a Run at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from velatura.overlays.overlay import Overlay
from velatura.training.run.verdict import Verdict


@dataclass(frozen=True)
class Step:
    """One training step, as `on_step` receives it.

    Attributes:
        done: Steps taken so far, this one included.
        total: Steps of the whole run.
        loss: The loss of this step.
        rate: Its learning rate.
        is_stored: A snapshot of the run after this step is stored.
    """

    done: int
    total: int
    loss: float
    rate: float
    is_stored: bool = False


@dataclass(frozen=True)
class Stage:
    """Work besides the steps, as `on_stage` receives it while it begins and goes on.

    Attributes:
        name: What is done: "preparing pictures", "painting previews" or "painting strengths".
        done, total: Pictures done, and pictures in all; of a trial's "training" its steps.
    """

    name: str
    done: int
    total: int


OnStage = Callable[[Stage], None]


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        overlay: The trained overlay.
        file: Its file.
        losses: The loss of every step.
        folder: The run folder.
        validation_losses: Losses on the validation pictures, by step.
        best: The file of the overlay with the lowest validation loss, if there was a validation.
        verdict: What the run says of itself: print it. Every run that `velatura.train` returns has one.
        high_noise_losses: Losses on the validation pictures at timesteps in the noisier half of the schedule, by step.
    """

    overlay: Overlay
    file: Path
    losses: list[float]
    folder: Path
    validation_losses: dict[int, float] = field(default_factory=dict[int, float])
    best: Path | None = None
    verdict: Verdict | None = None
    high_noise_losses: dict[int, float] = field(default_factory=dict[int, float])
