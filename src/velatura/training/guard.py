"""A run that goes wrong is noticed: by a loss that is no number, that stays high, or rises against its own history."""

from __future__ import annotations

import math
from statistics import fmean, pvariance
from typing import Self

from pydantic import BaseModel, ConfigDict

LOSS_WINDOW = 50  # steps whose mean is judged; the loss of one step alone says little
MAX_LOSS_RISE = 2.0  # times the lowest mean so far, and
MIN_STANDARD_ERRORS = 4.0  # standard errors above it: a loss that only rises by chance does so once in 30,000 windows
MAX_VALIDATION_RISE = 1.5  # times the lowest validation loss, or
MAX_RISE_OVER_UNTRAINED = 1.25  # times that of the overlay as it began
GOOD_SNAPSHOT_FACTOR = 1.1  # times the lowest validation loss: snapshots up to here are gone back to


class LossMonitor(BaseModel):
    """What the guard has seen of a run up to a step; a new one for every step, so that a run can go back.

    factor is what the plan's rates are multiplied by, after as many rescues.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recent: tuple[float, ...] = ()
    lowest: float | None = None
    spread: float = 0.0
    first: float | None = None
    best: float | None = None
    best_step: int = 0
    rescues: int = 0
    factor: float = 1.0

    def with_loss(self, loss: float) -> Self:
        """What is known after another step."""
        recent = (*self.recent, loss)[-LOSS_WINDOW:]
        if len(recent) < LOSS_WINDOW or (self.lowest is not None and fmean(recent) >= self.lowest):
            return self.model_copy(update={"recent": recent})
        return self.model_copy(update={"recent": recent, "lowest": fmean(recent), "spread": pvariance(recent)})

    def with_validation(self, loss: float, step: int) -> Self:
        """What is known after the fixed pictures were tried."""
        first = loss if self.first is None else self.first
        if self.best is not None and loss >= self.best:
            return self.model_copy(update={"first": first})
        return self.model_copy(update={"first": first, "best": loss, "best_step": step})

    def loss_problem(self, limit: float | None) -> str:
        """What is wrong with the losses of late, in words, or nothing."""
        if len(self.recent) < LOSS_WINDOW or self.lowest is None:
            return ""
        mean = fmean(self.recent)
        standard_error = math.sqrt((pvariance(self.recent) + self.spread) / LOSS_WINDOW)
        if mean > MAX_LOSS_RISE * self.lowest and mean - self.lowest > MIN_STANDARD_ERRORS * standard_error:
            return f"the loss of {LOSS_WINDOW} steps rose from {self.lowest:.3g} to {mean:.3g}"
        # a base may have a higher loss on some pictures than others have after they went wrong
        if limit is not None and mean > max(limit, MAX_VALIDATION_RISE * (self.first or 0)):
            return f"the loss of {LOSS_WINDOW} steps is {mean:.3g}, above {limit:g}"
        return ""

    def validation_problem(self, validation_loss: float) -> str:
        """What a validation loss says is wrong, in words, or nothing."""
        if not math.isfinite(validation_loss):
            return "the validation loss is no number"
        if self.first is not None and validation_loss > MAX_RISE_OVER_UNTRAINED * self.first:
            return f"the validation loss is {validation_loss:.3g}, and was {self.first:.3g} before anything was learned"
        if self.best is not None and validation_loss > MAX_VALIDATION_RISE * self.best:
            return f"the validation loss rose from {self.best:.3g} to {validation_loss:.3g}"
        return ""

    def is_good(self, validation_loss: float | None) -> bool:
        """Whether a snapshot of this validation loss is one to go back to."""
        return validation_loss is None or self.best is None or validation_loss <= GOOD_SNAPSHOT_FACTOR * self.best
