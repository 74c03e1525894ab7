"""What a sweep will do: its candidates, rounds and steps, checked before anything is trained, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from velatura.base.base import Base
from velatura.datasets.folder import read_dataset
from velatura.errors import BadDataset, ignore_warnings, quantity
from velatura.studies.candidates import (
    Candidate,
    CandidateOptions,
    make_candidates,
    round_steps,
    survivor_counts,
    training_command,
)
from velatura.studies.pictures import check_picture_count, split_folders
from velatura.studies.sweep_results import SweepTrial
from velatura.studies.sweep_trials import TrialJob, make_overlay
from velatura.training.estimate import estimate
from velatura.training.run.folder import file_name
from velatura.training.run.recorded_base import base_location
from velatura.training.train import check_plan


@dataclass(frozen=True)
class SweepSetup:
    """Settings that all trials of a sweep share.

    Attributes:
        base: The base.
        folder: The folder of the sweep.
        kind, purpose: The kind of overlay, and "style" or "subject".
        name: What every overlay is called.
        pictures: The user's folder.
        data: The folder of the training pictures.
        held_out: The folder of the validation pictures.
        is_split: Both folders are the sweep's own, with copies of the user's pictures.
        fields: Fields of the plan that differ from the preset in all trials.
        candidates: What is tried.
        rounds: The step to which every round trains.
        factor: One of so many trials goes on.
    """

    base: Base
    folder: Path
    kind: str
    purpose: str
    name: str
    pictures: Path
    data: Path
    held_out: Path
    is_split: bool
    fields: Mapping[str, object]
    candidates: Sequence[Candidate]
    rounds: Sequence[int]
    factor: int

    @property
    def step_count(self) -> int:
        """Steps of all trials together."""
        starts = [0, *self.rounds]
        counts = survivor_counts(len(self.candidates), self.factor)
        return sum(count * (end - start) for count, start, end in zip(counts, starts[:-1], self.rounds, strict=True))

    def job(self, candidate: Candidate, until: int) -> TrialJob:
        """Return the job that trains a candidate to a step."""
        held_out = str(self.held_out.absolute())
        with ignore_warnings():  # of rates, which the candidate's own plan gave
            plan = candidate.plan.replace(snapshot_every=self.rounds[0], validation_folder=held_out)
        folder = self.folder.absolute() / "trials" / f"{candidate.number:03}"
        return TrialJob(
            candidate.number, self.kind, self.name, candidate.overlay, plan, self.data.absolute(), folder, until
        )

    def untrained_trial(self, candidate: Candidate) -> SweepTrial:
        """Return the entry of a candidate in the results before its training."""
        base = base_location(self.base.opened_from, self.base.name, self.base.open_options)
        common = ["--name", self.name, "--for", self.purpose, *([] if base == "tiny" else ["--base", base])]
        for field, value in self.fields.items():
            common += ["--set", f"{field}={'none' if value is None else value}"]
        return SweepTrial(
            number=candidate.number,
            values=candidate.values,
            folder=f"trials/{candidate.number:03}",
            command=training_command(candidate, self.kind, self.pictures, common),
        )


class SweepPlan(BaseModel):
    """Trials, rounds and steps of a sweep, and how long it takes, for people (`str`) and for programs.

    Attributes:
        kind, pictures, base: What is trained, on which pictures and which base.
        trials: The values of every trial.
        rounds: The step to which every round trains.
        trials_by_round: How many trials train in every round.
        steps: Steps of all trials together.
        steps_without_halving: Steps that all trials would take to the end.
        seconds: Seconds of training, without validations.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    pictures: str
    base: str
    trials: tuple[dict[str, str], ...]
    rounds: tuple[int, ...]
    trials_by_round: tuple[int, ...]
    steps: int
    steps_without_halving: int
    seconds: float

    @classmethod
    def measure(cls, setup: SweepSetup) -> SweepPlan:
        """Measure a step of every candidate, and return the plan of a sweep."""
        return cls(
            kind=setup.kind,
            pictures=str(setup.pictures),
            base=setup.base.name,
            trials=tuple(candidate.values for candidate in setup.candidates),
            rounds=tuple(setup.rounds),
            trials_by_round=tuple(survivor_counts(len(setup.candidates), setup.factor)),
            steps=setup.step_count,
            steps_without_halving=len(setup.candidates) * setup.rounds[-1],
            seconds=_estimate_seconds(setup),
        )

    def __str__(self) -> str:
        trials = [
            f"trial {number:<5}{', '.join(f'{name}={value}' for name, value in values.items())}"
            for number, values in enumerate(self.trials, 1)
        ]
        rounds = [
            f"{quantity(count, 'trial')} to step {until}"
            for count, until in zip(self.trials_by_round, self.rounds, strict=True)
        ]
        steps = f"{self.steps:,} steps in all, of {self.steps_without_halving:,} for all trials to the end"
        minutes = max(1, round(self.seconds / 60))
        return "\n".join(
            [*trials, *rounds, steps, f"about {minutes} min of training on {self.base}, and the validations"]
        )


def plan_sweep(
    base: Base,
    pictures: Path,
    out: Path,
    tries: Mapping[str, Sequence[str]],
    options: CandidateOptions,
    *,
    factor: int,
    validation: Path | None,
) -> SweepSetup:
    """Check what is to be tried, the pictures, and that every overlay can be built; nothing is written or trained.

    Args:
        base: The base.
        pictures: The folder of the pictures.
        out: The folder of the sweep.
        tries: Values to try, as texts.
        options: What all candidates share.
        factor: One of so many trials goes on to the next round.
        validation: Pictures for the validation; None: one in four of the pictures.

    Raises:
        VelaturaError: See `sweep`.
    """
    candidates = make_candidates(tries, options)
    rounds = round_steps(len(candidates), candidates[0].plan.steps, factor)
    name = file_name(pictures.absolute().name)
    examples = read_dataset(pictures).examples
    if validation is None:
        data, held_out = split_folders(out, name)
        check_picture_count(pictures, examples)
    else:
        data, held_out = pictures, validation
        training_paths = {example.path.resolve() for example in examples}
        for example in read_dataset(validation).examples:
            if example.path.resolve() in training_paths:
                raise BadDataset(f"{example.path} is a training picture too: choose other pictures for --validation")
    setup = SweepSetup(
        base,
        out,
        options.kind,
        options.purpose,
        name,
        pictures,
        data,
        held_out,
        validation is None,
        options.fields,
        candidates,
        rounds,
        factor,
    )
    _check_trials(setup)
    return setup


def _check_trials(setup: SweepSetup) -> None:
    """Refuse an overlay that cannot be built, or a plan that does not fit; equal overlays are built once."""
    dataset = read_dataset(setup.pictures)
    candidates_by_overlay: dict[str, list[Candidate]] = {}
    for candidate in setup.candidates:
        candidates_by_overlay.setdefault(repr(candidate.overlay), []).append(candidate)
    with ignore_warnings():
        for candidates in candidates_by_overlay.values():
            overlay = make_overlay(setup.base, setup.job(candidates[0], setup.rounds[0]))
            for candidate in candidates:
                check_plan(setup.base, overlay, dataset, candidate.plan)


def _estimate_seconds(setup: SweepSetup) -> float:
    """Measure a step of every candidate, and return the seconds of the whole sweep, without validations.

    Which trials go on is not known, so each round is taken to be of average trials.
    """
    seconds = [
        estimate(setup.base, make_overlay(setup.base, setup.job(candidate, 1)), candidate.plan).seconds
        / candidate.plan.steps
        for candidate in setup.candidates
    ]
    return fmean(seconds) * setup.step_count
