"""Results of a sweep: the losses of all trials, which one wins, and what the noise of the validation leaves open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from velatura.files import open_for_reading
from velatura.studies.results import InnerPath

SWEEP_RESULTS_NAME = "sweep.json"  # in the folder of a sweep
MIN_STANDARD_ERRORS = 2.0  # of a mean difference; within them it may be chance


class LossDifference(NamedTuple):
    """Difference of two trials' losses on the same pictures, noise and timesteps.

    Attributes:
        step: The last step at which both were measured.
        mean: The mean over the rows; above 0 the first trial is better.
        error: Its standard error, infinite for a single row.
    """

    step: int
    mean: float
    error: float

    @property
    def is_within_noise(self) -> bool:
        """True if the difference may be chance."""
        return abs(self.mean) <= MIN_STANDARD_ERRORS * self.error


class SweepTrial(BaseModel):
    """One trial: a training that the sweep made as far as it went on.

    Attributes:
        number: Counts from 1.
        values: The values that are tried, by name.
        folder: Its run folder, as a path from the folder of the sweep; `velatura resume` goes on with it.
        command: The command that trains it so on all pictures.
        steps: The steps that it took.
        errors: Validation errors at high noise by step, one for each row.
        seconds: Seconds of training.
        rescues: How often it diverged and went on at a lower rate.
        problem: Why it could not go on, None if nothing stopped it.
    """

    model_config = ConfigDict(frozen=True)

    number: int
    values: dict[str, str]
    folder: InnerPath
    command: str
    steps: int = 0
    errors: dict[int, tuple[float, ...]] = {}
    seconds: float = 0.0
    rescues: int = 0
    problem: str | None = None

    def loss(self, step: int) -> float:
        """Return the validation loss at high noise at a step, infinite if it was not measured there."""
        return fmean(self.errors[step]) if step in self.errors else math.inf

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.values.items())


class SweepResults(BaseModel):
    """All trials of a sweep.

    Attributes:
        kind: The kind of overlay.
        pictures: The folder of the pictures.
        held_out: The folder of those that all trials are judged on.
        base: The name of the base.
        factor: Of so many trials one goes on to the next round.
        rounds: The step to which every round trains.
        trials: The trials in the order of their numbers.
        file: The winner's overlay, as a path from the folder of the sweep; None as long as the sweep is not finished.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    pictures: str
    held_out: str
    base: str
    factor: int
    rounds: tuple[int, ...]
    trials: tuple[SweepTrial, ...]
    file: InnerPath | None = None

    def reached(self, trial: SweepTrial) -> int:
        """Return the step of the last round that a trial finished, 0 if it is none or the trial diverged."""
        if trial.problem:
            return 0
        return max((step for step in self.rounds if step in trial.errors), default=0)

    def ranking(self) -> list[SweepTrial]:
        """Return the trials, the best first: those that came further, and of these the one with the lower loss."""
        return sorted(self.trials, key=lambda trial: (-self.reached(trial), trial.loss(self.reached(trial))))

    @property
    def winner(self) -> SweepTrial:
        """The trial that came furthest."""
        return self.ranking()[0]

    def difference(self, first: SweepTrial, second: SweepTrial) -> LossDifference | None:
        """Return how much higher the second trial's loss is, None if both were never measured at one step.

        The rows of both are the same pictures, noise and timesteps, so that their differences are compared row by
        row, which leaves much less to chance than the difference of the two means.
        """
        steps = [step for step in self.rounds if step in first.errors and step in second.errors]
        if not steps or first.problem or second.problem:
            return None
        rows = zip(first.errors[steps[-1]], second.errors[steps[-1]], strict=True)
        differences = [other - own for own, other in rows]
        error = stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
        return LossDifference(steps[-1], fmean(differences), error)

    def ties(self) -> list[SweepTrial]:
        """Return the trials whose loss differs from the winner's by no more than the noise of the validation."""
        winner, *others = self.ranking()
        differences = [(trial, self.difference(winner, trial)) for trial in others]
        return [trial for trial, difference in differences if difference is not None and difference.is_within_noise]

    def recommendation(self) -> str:
        """Say in a sentence or two which values win, by how much, and what may be chance."""
        winner, *others = self.ranking()
        reached = self.reached(winner)
        if not reached:
            return "No trial has finished a round yet."
        state = "wins" if reached == self.rounds[-1] else f"leads after {reached} of {self.rounds[-1]} steps"
        losses = f"{winner.loss(reached):.4f}"
        before = f", {winner.loss(0):.4f} untrained" if 0 in winner.errors else ""
        first = f"Trial {winner.number} {state}: {winner} (validation loss at high noise {losses}{before})."
        return f"{first}{self._describe_lead(winner, others)}{self._rescue_note(winner)}"

    def _describe_lead(self, winner: SweepTrial, others: Sequence[SweepTrial]) -> str:
        """Say how far the winner is below the next trial, or from which trials the noise does not tell it apart."""
        ties = self.ties()
        next_trial = ties[0] if ties else others[0]
        difference = self.difference(winner, next_trial)
        if difference is None:
            return " No other trial finished a round."
        size = f"{abs(difference.mean):.4f} ± {difference.error:.4f} at step {difference.step}"
        if not ties:
            return f" It is {size} below trial {next_trial.number}, the next one ({next_trial})."
        numbers = ", ".join(str(trial.number) for trial in ties)
        return (
            f" Its difference from trial{'s' * (len(ties) > 1)} {numbers} is within the noise of the validation "
            f"(trial {next_trial.number}: {size}) and may be chance."
        )

    def _rescue_note(self, winner: SweepTrial) -> str:
        if not winner.rescues:
            return ""
        times = f"{winner.rescues} time{'s' * (winner.rescues != 1)}"
        return f" It diverged {times} and went on at a lower learning rate than it was given: try lower ones."

    def table(self) -> list[list[str]]:
        """Return the rows of the table, the head first: the best trial first."""
        names = list(self.trials[0].values)
        rows = [["trial", *names, "steps", "loss", "below it", "note"]]
        ranking = self.ranking()
        winner, tied_numbers = ranking[0], {trial.number for trial in self.ties()}
        for trial in ranking:
            reached = self.reached(trial)
            values = [trial.values[name] for name in names]
            loss = f"{trial.loss(reached):.4f}" if reached else ""
            note = _describe_trial(trial, is_tied=trial.number in tied_numbers)
            rows.append([str(trial.number), *values, str(trial.steps), loss, self._gap(winner, trial), note])
        return rows

    def _gap(self, winner: SweepTrial, trial: SweepTrial) -> str:
        difference = None if trial is winner else self.difference(winner, trial)
        if difference is None:
            return ""
        return f"{difference.mean:.4f} ± {difference.error:.4f} at {difference.step}"

    def __str__(self) -> str:
        rows = self.table()
        widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
        lines = ["".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, self.recommendation()])


def _describe_trial(trial: SweepTrial, *, is_tied: bool) -> str:
    if trial.problem:
        return "diverged"
    rescues = f"rescued {trial.rescues} times" if trial.rescues > 1 else "rescued once"
    return "; ".join(filter(None, [rescues if trial.rescues else "", "may be chance" if is_tied else ""]))


def read_sweep(path: Path) -> SweepResults | None:
    """Read sweep.json, or return None if it is not there or of another version."""
    if not path.is_file():
        return None
    with open_for_reading(path) as file:
        try:
            return SweepResults.model_validate_json(file.read())
        except ValueError:
            return None
