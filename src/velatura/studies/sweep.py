"""Sweep: many settings tried by successive halving, each as a resumable run, and the best one trained to its end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.datasets.folder import read_dataset
from velatura.errors import AlreadyExists, BadDataset, TrainingDiverged, gather_warnings, ignore_warnings
from velatura.files import atomic_write
from velatura.studies.candidates import (
    Candidate,
    CandidateOptions,
    make_candidates,
    round_steps,
    survivor_counts,
    training_command,
    tried_texts,
)
from velatura.studies.cluster import BaseReference, Cluster, check_ray_installed, connect
from velatura.studies.pictures import check_picture_count, split_pictures
from velatura.studies.sweep_page import sweep_page
from velatura.studies.sweep_results import SweepResults, SweepTrial, read_sweep
from velatura.studies.sweep_trials import TrialJob, TrialState, make_overlay, read_state, train_trial
from velatura.training.estimate import estimate
from velatura.training.run.folder import file_name
from velatura.training.run.recorded_base import base_location
from velatura.training.train import check_plan

DEFAULT_FACTOR = 2
RESULTS_NAME, PAGE_NAME = "sweep.json", "index.html"

OnSweepTrial = Callable[[str, int, int], None]  # what is trained, steps done, and steps of the whole sweep
RunJobs = Callable[[Sequence[TrialJob]], Iterator[tuple[TrialJob, TrialState]]]


@dataclass(frozen=True)
class SweepSetup:
    """All that the trials of a sweep share.

    Attributes:
        base: The base.
        folder: The folder of the sweep.
        kind, purpose: The kind of overlay, and "style" or "subject".
        name: What every overlay is called.
        pictures: The user's folder.
        data: The folder of the training pictures.
        held_out: The folder of the validation pictures.
        fields: Fields of the plan that differ from the preset in all trials.
        candidates: What is tried.
        rounds: The step to which every round trains.
        factor: Of so many trials one goes on.
    """

    base: Base
    folder: Path
    kind: str
    purpose: str
    name: str
    pictures: Path
    data: Path
    held_out: Path
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


@freeze_models
@check_arguments()
@gather_warnings()
def sweep(
    base: AnyBase,
    kind: str,
    pictures: str | os.PathLike[str],
    *,
    tries: Mapping[str, str | Sequence[object]],
    out: str | os.PathLike[str],
    steps: int | None = None,
    factor: int = DEFAULT_FACTOR,
    trials: int | None = None,
    purpose: str = "style",
    seed: int = 0,
    validation: str | os.PathLike[str] | None = None,
    fields: Mapping[str, object] | None = None,
    ray: str | None = None,
    on_trial: OnSweepTrial | None = None,
) -> SweepResults:
    """Try settings of a training by successive halving, and train the best ones to the end.

    All combinations of the values train for a few steps. The half with the lower validation loss goes on for twice as
    many, and so on until one is left, which is trained to its last step. The loss is that at high noise on pictures
    that no trial is trained on. Every trial is a run folder, and its steps are those of one uninterrupted training: the
    winner's file is, bit for bit, the one that `velatura.train` makes by the same plan. A sweep that is interrupted
    goes on where it was if it is started again with the same arguments.

    Args:
        base: The base.
        kind: The kind of overlay: "hypernet", "lora", "embedding" or "dreambooth".
        pictures: The folder of the pictures with their captions.
        tries: Values to try by name: arguments of the overlay, as {"layers": [(1, 2, 1), (1, 2, 2, 1)]}, and fields of
            the plan, as {"rate": [1e-3, 3e-3]}. Values may be texts, as on the command line: "1,2,1|1,2,2,1".
        out: The folder of the sweep; index.html in it is the report, sweep.json the same for programs.
        steps: Steps of a whole training, to which only the winner comes; None: those of the preset.
        factor: Of so many trials one goes on to the next round, which is so many times as long.
        trials: The most combinations to try, drawn at random from all; None: all of them, 256 at most.
        purpose: What is learned, "style" or "subject": the preset.
        seed: Seed of every training and of the choice of combinations.
        validation: A folder of pictures for the validation; None: one in four of the pictures is held out.
        fields: Fields of the plan that differ from the preset in all trials.
        ray: Address of a Ray cluster on which the trials of a round train side by side, "local" for one on this
            machine; see `velatura.studies.cluster.connect`. None: one after another in this process.
        on_trial: Called before a trial trains and after each of its steps, with what is trained, steps done, and steps
            of the whole sweep; on a cluster after each trial.

    Returns:
        The results; print them, or their `recommendation()`.

    Raises:
        UnknownName: The kind, a setting or one of its choices does not exist.
        BadPlan: A value is out of range, or the steps are too few for so many trials.
        BadOverlay: An overlay cannot be built by a combination of values.
        BadDataset: There are too few pictures, or other ones than when the sweep was begun.
        AlreadyExists: `out` holds another sweep, or something else.
        TrainingDiverged: All trials diverged.
        BadSettings: No Ray cluster answers at the address, or Ray is not installed.
        ProcessFailed: The workers of a trial died again and again.
    """
    if ray is not None:
        check_ray_installed()
    base = to_base(base)
    setup = prepare_sweep(
        base,
        Path(pictures).expanduser(),
        Path(out).expanduser(),
        {name: tried_texts(name, values) for name, values in tries.items()},
        CandidateOptions(kind, purpose, base.family.name, steps, seed, dict(fields or {}), trials),
        factor=factor,
        validation=None if validation is None else Path(validation).expanduser(),
    )
    check_trials(setup)
    if ray is None:
        return run_sweep(setup, _run_here(setup, on_trial))
    with connect(ray) as cluster:
        return run_sweep(setup, _run_on(cluster, setup, on_trial))


def prepare_sweep(
    base: Base,
    pictures: Path,
    out: Path,
    tries: Mapping[str, Sequence[str]],
    options: CandidateOptions,
    *,
    factor: int,
    validation: Path | None,
) -> SweepSetup:
    """Check what is to be tried, and the pictures; nothing is written.

    Args:
        base: The base.
        pictures: The folder of the pictures.
        out: The folder of the sweep.
        tries: Values to try, as texts.
        options: What all candidates share.
        factor: Of so many trials one goes on.
        validation: Pictures for the validation; None: one in four of the pictures.

    Raises:
        VelaturaError: See `sweep`.
    """
    candidates = make_candidates(tries, options)
    rounds = round_steps(len(candidates), candidates[0].plan.steps, factor)
    name = file_name(pictures.absolute().name)
    examples = read_dataset(pictures).examples
    data, held_out = out / "pictures" / name, out / "pictures" / "held-out"
    if validation is None:
        check_picture_count(pictures, examples)
    else:
        data, held_out = pictures, validation
        training_paths = {example.path.resolve() for example in examples}
        for example in read_dataset(validation).examples:
            if example.path.resolve() in training_paths:
                raise BadDataset(f"{example.path} is a training picture too: choose other pictures for --validation")
    return SweepSetup(
        base,
        out,
        options.kind,
        options.purpose,
        name,
        pictures,
        data,
        held_out,
        options.fields,
        candidates,
        rounds,
        factor,
    )


def check_trials(setup: SweepSetup) -> None:
    """Refuse, before anything is trained, an overlay that cannot be built, or a plan that does not fit."""
    dataset = read_dataset(setup.pictures)
    for candidate in setup.candidates:
        job = setup.job(candidate, setup.rounds[0])
        with ignore_warnings():
            overlay = make_overlay(setup.base, job)
            check_plan(setup.base, overlay, dataset, candidate.plan)


def estimate_seconds(setup: SweepSetup) -> float:
    """Measure a step of every candidate, and return the seconds of the whole sweep, without validations.

    Which trials go on is not known, so each round is taken to be of average trials.
    """
    seconds = [
        estimate(setup.base, make_overlay(setup.base, setup.job(candidate, 1)), candidate.plan).seconds
        / candidate.plan.steps
        for candidate in setup.candidates
    ]
    return fmean(seconds) * setup.step_count


def run_sweep(setup: SweepSetup, run_jobs: RunJobs) -> SweepResults:
    """Run all rounds that are left.

    Args:
        setup: The sweep.
        run_jobs: Trains trials, and yields each with its state as soon as it is at the end of its round.
    """
    trials = _open_folder(setup)
    if setup.held_out.parent == setup.folder / "pictures":
        split_pictures(setup.pictures, setup.folder)
    candidates = {candidate.number: candidate for candidate in setup.candidates}
    remaining = list(candidates)
    counts = survivor_counts(len(remaining), setup.factor)
    for until, next_count in zip(setup.rounds, [*counts[1:], 1], strict=True):
        jobs = [setup.job(candidates[number], until) for number in remaining if not trials[number].problem]
        for job, state in run_jobs(jobs):
            trials[job.number] = trials[job.number].model_copy(update=state._asdict())
            _write(setup, trials)
        remaining = sorted(
            (number for number in remaining if not trials[number].problem),
            key=lambda number: trials[number].loss(until),
        )[:next_count]
        if not remaining:
            raise TrainingDiverged(f"all trials diverged before step {until}: try lower learning rates")
    winner = trials[remaining[0]]
    file = Path(f"{setup.name}.safetensors")
    with atomic_write(setup.folder / file) as temp_path:
        shutil.copyfile(setup.folder / winner.folder / file, temp_path)
    return _write(setup, trials, str(file))


def _run_here(setup: SweepSetup, on_trial: OnSweepTrial | None) -> RunJobs:
    """Return what trains trials one after another in this process."""

    def run_jobs(jobs: Sequence[TrialJob]) -> Iterator[tuple[TrialJob, TrialState]]:
        for job in jobs:
            start = read_state(job).steps
            label = f"trial {job.number} of {len(setup.candidates)}, to step {job.until}"
            report = _reporter(setup, on_trial, label, start)
            report(start)
            try:
                state = train_trial(setup.base, job, lambda step, report=report: report(step.done))
            except KeyboardInterrupt as error:
                error.__notes__ = [f"start the sweep again with --out {setup.folder} to go on where it was"]
                raise
            yield job, state

    return run_jobs


def _run_on(cluster: Cluster, setup: SweepSetup, on_trial: OnSweepTrial | None) -> RunJobs:
    """Return what trains the trials of a round side by side on a cluster."""

    def run_jobs(jobs: Sequence[TrialJob]) -> Iterator[tuple[TrialJob, TrialState]]:
        base, folders = BaseReference.from_base(setup.base), [setup.folder, setup.data, setup.held_out]
        for job, state in cluster.run(train_trial, base, jobs, folders):
            label = f"trial {job.number} of {len(setup.candidates)}, to step {job.until}"
            _reporter(setup, on_trial, label, state.steps)(state.steps)
            yield job, state

    return run_jobs


def _reporter(setup: SweepSetup, on_trial: OnSweepTrial | None, label: str, start: int) -> Callable[[int], None]:
    """Return what reports a step of a trial as steps of the whole sweep."""
    before = sum(read_state(setup.job(candidate, 1)).steps for candidate in setup.candidates) - start if on_trial else 0

    def report(step: int) -> None:
        if on_trial:
            on_trial(label, before + step, setup.step_count)

    return report


def _open_folder(setup: SweepSetup) -> dict[int, SweepTrial]:
    """Return the trials by number: new ones, or those of the sweep in the folder, which must be the same one."""
    new = {candidate.number: setup.untrained_trial(candidate) for candidate in setup.candidates}
    path = setup.folder / RESULTS_NAME
    if not setup.folder.is_dir() or not any(setup.folder.iterdir()):
        setup.folder.mkdir(parents=True, exist_ok=True)
        _write(setup, new)
        return new
    stored = read_sweep(path)
    if stored is None:
        raise AlreadyExists(f"{setup.folder} already exists and holds no sweep: name another folder with --out")
    expected = _results(setup, new)
    if [_identity(trial) for trial in stored.trials] != [_identity(trial) for trial in expected.trials] or (
        stored.model_copy(update={"trials": (), "file": None}) != expected.model_copy(update={"trials": ()})
    ):
        raise AlreadyExists(
            f"{setup.folder} holds a sweep with other settings: start it with the same ones to go on, or name another "
            "folder with --out"
        )
    return {trial.number: trial for trial in stored.trials}


def _identity(trial: SweepTrial) -> tuple[object, ...]:
    return trial.number, trial.values, trial.command


def _results(setup: SweepSetup, trials: Mapping[int, SweepTrial], file: str | None = None) -> SweepResults:
    return SweepResults(
        kind=setup.kind,
        pictures=str(setup.pictures.absolute()),
        held_out=str(setup.held_out.absolute()),
        base=setup.base.name,
        factor=setup.factor,
        rounds=tuple(setup.rounds),
        trials=tuple(trials[number] for number in sorted(trials)),
        file=file,
    )


def _write(setup: SweepSetup, trials: Mapping[int, SweepTrial], file: str | None = None) -> SweepResults:
    results = _results(setup, trials, file)
    with atomic_write(setup.folder / RESULTS_NAME) as temp_path:
        temp_path.write_text(results.model_dump_json(indent=2) + "\n", "utf-8")
    with atomic_write(setup.folder / PAGE_NAME) as temp_path:
        temp_path.write_text(sweep_page(results), "utf-8")
    return results
