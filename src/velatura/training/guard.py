"""Monitor of a run that notices divergence: a loss that is NaN, that stays high, or that rises."""

from __future__ import annotations

import math
from statistics import fmean, pvariance
from typing import Self

from pydantic import BaseModel, ConfigDict

LOSS_WINDOW = 50  # steps in a mean; the loss of a single step says little
FIRST_STEPS = 4  # whose mean stands for the untrained loss where nothing is validated; later ones may have diverged
MAX_LOSS_RISE = 2.0  # times the lowest mean so far, and also
MIN_STANDARD_ERRORS = 4.0  # standard errors above it; by chance that happens once in 30,000 windows
MAX_VALIDATION_RISE = 1.5  # times the lowest validation loss, or
MAX_RISE_OVER_UNTRAINED = 1.25  # times the validation loss of the untrained overlay
GOOD_SNAPSHOT_FACTOR = 1.1  # times the lowest validation loss: a run goes back only to snapshots up to here


class LossMonitor(BaseModel):
    """Losses of a run up to a step, as far as the guard needs them. Immutable, so that a run can go back.

    Attributes:
        recent: Losses of the last `LOSS_WINDOW` steps.
        start: Losses of the first `FIRST_STEPS` steps.
        lowest: Lowest mean over a window so far.
        spread: Variance in that window.
        first: Validation loss of the untrained overlay.
        best: Lowest validation loss so far.
        best_step: Step of `best`.
        rescues: Number of times that the run went back.
        factor: Factor on the plan's learning rates after these rescues.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recent: tuple[float, ...] = ()
    start: tuple[float, ...] = ()
    lowest: float | None = None
    spread: float = 0.0
    first: float | None = None
    best: float | None = None
    best_step: int = 0
    rescues: int = 0
    factor: float = 1.0

    def with_loss(self, loss: float) -> Self:
        """Return the monitor after one more step."""
        recent = (*self.recent, loss)[-LOSS_WINDOW:]
        changes: dict[str, object] = {"recent": recent}
        if len(self.recent) == len(self.start) < FIRST_STEPS:
            changes["start"] = recent
        if len(recent) == LOSS_WINDOW and (self.lowest is None or fmean(recent) < self.lowest):
            changes |= {"lowest": fmean(recent), "spread": pvariance(recent)}
        return self.model_copy(update=changes)

    def with_validation(self, loss: float, step: int) -> Self:
        """Return the monitor after one more validation."""
        first = loss if self.first is None else self.first
        if self.best is not None and loss >= self.best:
            return self.model_copy(update={"first": first})
        return self.model_copy(update={"first": first, "best": loss, "best_step": step})

    def loss_problem(self, limit: float | None) -> str:
        """Describe what is wrong with the recent losses, or return an empty string.

        Args:
            limit: The plan's `loss_limit`, which counts only if the untrained overlay's loss was lower.
        """
        if len(self.recent) < LOSS_WINDOW or self.lowest is None:
            return ""
        mean = fmean(self.recent)
        standard_error = math.sqrt((pvariance(self.recent) + self.spread) / LOSS_WINDOW)
        if mean > MAX_LOSS_RISE * self.lowest and mean - self.lowest > MIN_STANDARD_ERRORS * standard_error:
            return f"the mean loss of {LOSS_WINDOW} steps rose from {self.lowest:.3g} to {mean:.3g}"
        # The untrained loss counts too: on some pictures a base's loss is higher than a diverged run's on others
        untrained = fmean(self.start or [0.0]) if self.first is None else self.first
        if limit is not None and mean > max(limit, MAX_VALIDATION_RISE * untrained):
            return f"the mean loss of {LOSS_WINDOW} steps is {mean:.3g}, above the limit of {limit:g}"
        return ""

    def validation_problem(self, validation_loss: float) -> str:
        """Describe what is wrong with a validation loss, or return an empty string."""
        if not math.isfinite(validation_loss):
            return "the validation loss is NaN or infinite"
        if self.first is not None and validation_loss > MAX_RISE_OVER_UNTRAINED * self.first:
            return f"the validation loss is {validation_loss:.3g}, and was {self.first:.3g} before the training"
        if self.best is not None and validation_loss > MAX_VALIDATION_RISE * self.best:
            return f"the validation loss rose from {self.best:.3g} to {validation_loss:.3g}"
        return ""

    def is_out_of_patience(self, patience: int, snapshot_every: int, step: int) -> bool:
        """Return True at a snapshot if the validation loss has not fallen for so many snapshots.

        Args:
            patience: The plan's number of snapshots; 0: never.
            snapshot_every: Steps between two snapshots.
            step: Steps taken.
        """
        if not patience or not snapshot_every or step % snapshot_every:
            return False
        return (step - self.best_step) // snapshot_every >= patience

    def is_good(self, validation_loss: float | None) -> bool:
        """Return True if a run may go back to a snapshot with this validation loss."""
        return validation_loss is None or self.best is None or validation_loss <= GOOD_SNAPSHOT_FACTOR * self.best
