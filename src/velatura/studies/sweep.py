"""Sweep: many settings tried by successive halving, each as a resumable run; the winner alone is trained to its end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from velatura.arguments import check_arguments
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.compare.cluster import BaseReference, Cluster, RunJobs, connect
from velatura.datasets.folder import read_dataset
from velatura.errors import AlreadyExists, TrainingDiverged, gather_warnings
from velatura.files import atomic_write
from velatura.imports import check_ray_installed
from velatura.studies.candidates import CandidateOptions, survivor_counts, tried_texts
from velatura.studies.pictures import check_same_pictures, split_pictures
from velatura.studies.results import REPORT_NAME
from velatura.studies.sweep_page import sweep_page
from velatura.studies.sweep_plan import SweepSetup, plan_sweep
from velatura.studies.sweep_results import SWEEP_RESULTS_NAME, SweepResults, SweepTrial, read_sweep
from velatura.studies.sweep_trials import TrialJob, TrialState, read_state, train_trial

DEFAULT_FACTOR = 2

OnSweepTrial = Callable[[str, int, int], None]  # what is trained, steps done, and steps of the whole sweep
RunSweepTrials = RunJobs[TrialJob, TrialState]


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
    """Try settings of a training by successive halving, and train the winner to the end.

    All combinations of the values train for a few steps. The half with the lower validation loss goes on for twice as
    many, and so on until one is left. It alone is trained to its last step. The loss is that at high noise on pictures
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
        factor: One of so many trials goes on to the next round, which ends after so many times as many steps.
        trials: The most combinations to try, drawn at random from all; None: all of them, 256 at most.
        purpose: What is learned, "style" or "subject": the preset.
        seed: Seed of every training and of the choice of combinations.
        validation: A folder of pictures for the validation; None: one in four of the pictures is held out.
        fields: Fields of the plan that differ from the preset in all trials.
        ray: Address of a Ray cluster on which the trials of a round train side by side, "local" for one on this
            machine; see `velatura.compare.cluster.connect`. None: one after another in this process.
        on_trial: Called before a trial trains and after each of its steps, with what is trained, steps done, and steps
            of the whole sweep; on a cluster after each trial.

    Returns:
        The results; print them, or their `recommendation()`.

    Raises:
        UnknownName: The kind, a setting or one of its choices does not exist.
        BadPlan: A value is out of range, or the steps are too few for so many trials.
        BadOverlay: An overlay cannot be built by a combination of values.
        BadDataset: There are too few pictures, or pictures or captions changed since the sweep was begun.
        AlreadyExists: `out` holds another sweep, or something else.
        TrainingDiverged: All trials diverged.
        BadSettings: No Ray cluster answers at the address, or Ray is not installed.
        UnsupportedBase: A cluster is asked for, and the base was not opened from a file.
        ProcessFailed: The workers of a trial died again and again.
    """
    if ray is not None:
        check_ray_installed()
    base = to_base(base)
    setup = plan_sweep(
        base,
        Path(pictures).expanduser(),
        Path(out).expanduser(),
        {name: tried_texts(name, values) for name, values in tries.items()},
        CandidateOptions(kind, purpose, base.family.name, steps, seed, dict(fields or {}), trials),
        factor=factor,
        validation=None if validation is None else Path(validation).expanduser(),
    )
    progress = SweepProgress(setup, on_trial)
    if ray is None:
        return run_sweep(setup, _run_here(setup, progress))
    reference = BaseReference.from_base(base)
    with connect(ray) as cluster:
        return run_sweep(setup, _run_on(cluster, reference, setup, progress))


class SweepProgress:
    """Reports steps of single trials as steps of the whole sweep.

    Args:
        setup: The sweep.
        on_trial: Called with what is trained, steps done, and steps of the whole sweep.
    """

    def __init__(self, setup: SweepSetup, on_trial: OnSweepTrial | None) -> None:
        self._setup, self._on_trial = setup, on_trial
        self._steps: dict[int, int] = {}  # of each trial; read once, when the first is reported

    def report(self, job: TrialJob, steps: int) -> None:
        """Report that a trial has taken so many steps in all."""
        if self._on_trial is None:
            return
        if not self._steps:
            jobs = [self._setup.job(candidate, 1) for candidate in self._setup.candidates]
            self._steps = {candidate_job.number: read_state(candidate_job).steps for candidate_job in jobs}
        self._steps[job.number] = steps
        label = f"trial {job.number} of {len(self._setup.candidates)}, to step {job.until}"
        self._on_trial(label, sum(self._steps.values()), self._setup.step_count)


def run_sweep(setup: SweepSetup, run_jobs: RunSweepTrials) -> SweepResults:
    """Run all rounds that are left.

    Args:
        setup: The sweep.
        run_jobs: Trains trials, and yields each with its state as soon as it is at the end of its round.
    """
    trials = _open_folder(setup)
    if setup.is_split:
        split_pictures(setup.pictures, setup.folder)
    else:
        groups = {str(folder): read_dataset(folder) for folder in (setup.data, setup.held_out)}
        check_same_pictures(
            setup.folder, {name: [*found.examples, *found.regularisation] for name, found in groups.items()}
        )
    candidates = {candidate.number: candidate for candidate in setup.candidates}
    remaining = list(candidates)
    counts = survivor_counts(len(remaining), setup.factor)
    for until, next_count in zip(setup.rounds, [*counts[1:], 1], strict=True):
        jobs = [setup.job(candidates[number], until) for number in remaining if not trials[number].problem]
        try:
            for job, state in run_jobs(jobs):
                trials[job.number] = trials[job.number].model_copy(update=state._asdict())
                _write_results(setup, _results(setup, trials))
        finally:
            _write_page(setup, _results(setup, trials))  # once a round: it is long, and is drawn from all trials
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
    results = _results(setup, trials, str(file))
    _write_results(setup, results)
    _write_page(setup, results)
    return results


def _run_here(setup: SweepSetup, progress: SweepProgress) -> RunSweepTrials:
    """Return what trains trials one after another in this process."""

    def run_jobs(jobs: Sequence[TrialJob]) -> Iterator[tuple[TrialJob, TrialState]]:
        for job in jobs:
            progress.report(job, read_state(job).steps)
            try:
                state = train_trial(setup.base, job, lambda step, job=job: progress.report(job, step.done))
            except KeyboardInterrupt as error:
                error.__notes__ = [f"start the sweep again with --out {setup.folder} to go on where it was"]
                raise
            yield job, state

    return run_jobs


def _run_on(cluster: Cluster, base: BaseReference, setup: SweepSetup, progress: SweepProgress) -> RunSweepTrials:
    """Return what trains the trials of a round side by side on a cluster."""

    def run_jobs(jobs: Sequence[TrialJob]) -> Iterator[tuple[TrialJob, TrialState]]:
        for job, state in cluster.run(train_trial, base, jobs, [setup.folder, setup.data, setup.held_out]):
            progress.report(job, state.steps)
            yield job, state

    return run_jobs


def _open_folder(setup: SweepSetup) -> dict[int, SweepTrial]:
    """Return the trials by number: new ones, or those of the sweep in the folder, which must be the same one."""
    new = {candidate.number: setup.untrained_trial(candidate) for candidate in setup.candidates}
    path = setup.folder / SWEEP_RESULTS_NAME
    if not setup.folder.is_dir() or not any(setup.folder.iterdir()):
        setup.folder.mkdir(parents=True, exist_ok=True)
        _write_results(setup, _results(setup, new))
        return new
    stored = read_sweep(path)
    if stored is None:
        problem = f"holds a {path.name} that cannot be read" if path.is_file() else "already exists and holds no sweep"
        raise AlreadyExists(f"{setup.folder} {problem}: name another folder with --out")
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
    return trial.number, trial.values, trial.folder, trial.command


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


def _write_results(setup: SweepSetup, results: SweepResults) -> None:
    with atomic_write(setup.folder / SWEEP_RESULTS_NAME) as temp_path:
        temp_path.write_text(results.model_dump_json(indent=2) + "\n", "utf-8")


def _write_page(setup: SweepSetup, results: SweepResults) -> None:
    with atomic_write(setup.folder / REPORT_NAME) as temp_path:
        temp_path.write_text(sweep_page(results), "utf-8")
