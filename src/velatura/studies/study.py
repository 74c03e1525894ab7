"""Which kind of overlay serves some pictures best: every kind trained under one budget, judged alike, and reported."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from velatura.arguments import check_arguments
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.compare.cluster import BaseReference, Cluster, RunJobs, connect
from velatura.compare.likeness import LIKENESS_MEASURE
from velatura.compare.picture_features import PictureEncoder
from velatura.compare.picture_sets import read_picture_set
from velatura.compare.strength_trade import KEPT_POWER
from velatura.errors import AlreadyExists, BadFile, BadPlan, UnknownName, gather_warnings, quantity
from velatura.files import atomic_write
from velatura.formats.loras.read_peft import find_adapters
from velatura.imports import check_ray_installed
from velatura.library.hashes import Hashes
from velatura.studies.pictures import record_once, split_pictures
from velatura.studies.report import StudyReport
from velatura.studies.results import REPORT_NAME, STUDY_RESULTS_NAME, UNTRAINED_KINDS, StudyResults, Trial, read_results
from velatura.studies.together import OtherFile, OtherOverlay
from velatura.studies.trials import KINDS, StudyJob, TrialSetup, run_study_job, run_trial
from velatura.training.run.recorded_base import base_location
from velatura.training.run.report import OnStage

DEFAULT_KINDS = ("embedding", "hypernet", "lora", "dreambooth", "aesthetic")
DEFAULT_MINUTES, DEFAULT_SEEDS = 12.0, 3
TRAINING_SHARE = 0.6  # of the minutes; the rest is for judging
BUDGET_NAME, SETTINGS_NAME = "budget.json", "settings.json"
MEASURE_SETTING = "measure of likeness and score"
STEP_COUNTS, SETTINGS = TypeAdapter(dict[str, int]), TypeAdapter(dict[str, str])

OnTrial = Callable[[str, int, int], None]  # what is done, trials done, and trials in all
RunStudyTrials = RunJobs[StudyJob, Trial]


@dataclass(frozen=True)
class StudyOptions:
    """What a study compares.

    Attributes:
        kinds: The kinds.
        seeds: Trainings of each kind.
        steps: Steps of each training, None if minutes are given.
        minutes: Minutes of the whole study, shared evenly; ignored if steps are given.
        purpose: "style" or "subject": the presets.
    """

    kinds: tuple[str, ...]
    seeds: int
    steps: int | None
    minutes: float
    purpose: str

    @property
    def trial_count(self) -> int:
        """Number of trials."""
        return sum(1 if kind in UNTRAINED_KINDS else self.seeds for kind in self.kinds)

    def trials(self) -> Iterator[tuple[str, int]]:
        """Yield kind and seed of every trial: all kinds with the first seed, then with the second, ..."""
        for seed in range(self.seeds):
            yield from ((kind, seed) for kind in self.kinds if not (seed and kind in UNTRAINED_KINDS))

    @property
    def budget(self) -> str:
        """Steps of each training, or minutes of the whole study."""
        return quantity(self.steps, "step") if self.steps else f"{self.minutes:g} minutes in all"

    def __str__(self) -> str:
        return f"{self.budget}, {quantity(self.seeds, 'seed')} of each kind"


@freeze_models
@check_arguments()
@gather_warnings()
def study(
    base: AnyBase,
    pictures: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    kinds: Sequence[str] = DEFAULT_KINDS,
    seeds: int = DEFAULT_SEEDS,
    steps: int | None = None,
    minutes: float = DEFAULT_MINUTES,
    purpose: str = "style",
    clip: str | os.PathLike[str] | None = None,
    dino: str | os.PathLike[str] | None = None,
    together: str | os.PathLike[str] | None = None,
    together_strength: float = 1.0,
    ray: str | None = None,
    on_trial: OnTrial | None = None,
    on_stage: OnStage | None = None,
) -> StudyResults:
    """Train every kind of overlay on the same pictures under one budget, judge them alike, and write a report.

    A study that is interrupted goes on where it was if it is started again with the same folder. One picture in four is
    held out: no training sees it, and likeness is measured against these.

    Args:
        base: The base.
        pictures: The folder of the pictures with their captions, four or more.
        out: The folder of the study; index.html in it is the report, study.json the same for programs.
        kinds: Kinds of overlay: "embedding", "hypernet", "lora", "dreambooth", "aesthetic".
        seeds: Trainings of each kind, so that the spread is known.
        steps: Steps of each training, at most those of the kind's preset. None: as many as fit into the minutes.
        minutes: Minutes of the whole study, of which every training gets the same.
        purpose: What is learned, "style" or "subject": the presets.
        clip: The folder of a whole CLIP, used instead of the base's; likeness compares its patches too.
        dino: The folder of a DINO; likeness compares its patches too.
        together: The file of another overlay, or the folder of a PEFT adapter. Each trial is then measured once more
            with it attached too: what is left of both.
        together_strength: Its strength.
        ray: Address of a Ray cluster on which trials run side by side, "local" for one on this machine; see
            `velatura.compare.cluster.connect`. None: one after another in this process. Seconds of training are those
            of the worker, so compare them only between machines that are alike.
        on_trial: Called before each trial with what is done, trials done, and trials in all; on a cluster after it.
        on_stage: Called while a trial goes on, after each training step and each strength that is painted; not on a
            cluster.

    Returns:
        The results; print them, or their `recommendation()`.

    Raises:
        UnknownName: A kind does not exist.
        BadDataset: There are fewer than four pictures, or pictures or captions changed since the study was begun.
        BadPlan: The budget is not above 0.
        AlreadyExists: `out` holds a study on another base, or with another budget, purpose or other overlay.
        BadFile: A file of the study in `out` is damaged, or the other overlay cannot be read.
        WrongBase: The other overlay does not fit the base.
        BadSettings: No Ray cluster answers at the address, or Ray is not installed.
        UnsupportedBase: A cluster is asked for, and the base was not opened from a file.
        ProcessFailed: The workers of a trial died again and again.
    """
    if ray is not None:
        check_ray_installed()
    base, out = to_base(base), Path(out).expanduser()
    options = StudyOptions(tuple(dict.fromkeys(kinds)), seeds, steps, minutes, purpose)
    _check_options(options)
    other = None if together is None else OtherFile(Path(together).expanduser().absolute(), together_strength)
    encoder = PictureEncoder.open(base, clip=clip, dino=dino)
    setup = _prepare(Path(pictures).expanduser(), out, options, encoder, other)
    _check_same_study(setup, options, clip, dino, other)
    jobs = _study_jobs(setup, options, clip, dino, other)
    if ray is None:
        run_here = _run_here(setup, options, on_trial, on_stage)
        return _run_study(setup, options, jobs, run_here, pictures=Path(pictures), other=other)
    reference = BaseReference.from_base(base)
    with connect(ray) as cluster:
        run_on = _run_on(cluster, reference, setup, options, on_trial)
        return _run_study(setup, options, jobs, run_on, pictures=Path(pictures), other=other)


def _run_study(
    setup: TrialSetup,
    options: StudyOptions,
    jobs: Sequence[StudyJob],
    run_jobs: RunStudyTrials,
    *,
    pictures: Path,
    other: OtherFile | None,
) -> StudyResults:
    """Run the trials that are not stored yet, and write results and page after each."""
    trials = list(filter(None, (_read_trial(setup, job) for job in jobs)))
    stored = {(trial.kind, trial.seed) for trial in trials}
    report = StudyReport(setup)
    for job, trial in run_jobs([job for job in jobs if (job.kind, job.seed) not in stored]):
        with atomic_write(_trial_file(setup, job)) as temp_path:
            temp_path.write_text(trial.model_dump_json(indent=2) + "\n", "utf-8")
        trials.append(trial)
        _write(setup.folder, report, _results(setup, options, pictures, trials, other))
    results = _results(setup, options, pictures, trials, other)
    _write(setup.folder, report, results)
    return results


def _run_here(
    setup: TrialSetup, options: StudyOptions, on_trial: OnTrial | None, on_stage: OnStage | None
) -> RunStudyTrials:
    """Return what runs trials one after another in this process."""

    def run_jobs(jobs: Sequence[StudyJob]) -> Iterator[tuple[StudyJob, Trial]]:
        for done, job in enumerate(jobs, options.trial_count - len(jobs)):
            if on_trial:
                on_trial(f"{job.kind}, seed {job.seed}", done, options.trial_count)
            try:
                trial = run_trial(setup, job.kind, job.seed, job.steps, on_stage=on_stage)
            except KeyboardInterrupt as error:
                error.__notes__ = [f"start the study again with --out {setup.folder} to go on where it was"]
                raise
            yield job, trial

    return run_jobs


def _run_on(
    cluster: Cluster, base: BaseReference, setup: TrialSetup, options: StudyOptions, on_trial: OnTrial | None
) -> RunStudyTrials:
    """Return what runs trials side by side on a cluster."""

    def run_jobs(jobs: Sequence[StudyJob]) -> Iterator[tuple[StudyJob, Trial]]:
        folders = [setup.folder, setup.data, setup.held_out_folder]
        finished = cluster.run(run_study_job, base, jobs, folders)
        for done, (job, trial) in enumerate(finished, options.trial_count - len(jobs) + 1):
            if on_trial:
                on_trial(f"{job.kind}, seed {job.seed}", done, options.trial_count)
            yield job, trial

    return run_jobs


def _check_same_study(
    setup: TrialSetup,
    options: StudyOptions,
    clip: str | os.PathLike[str] | None,
    dino: str | os.PathLike[str] | None,
    other: OtherFile | None,
) -> None:
    """Record what the figures depend on, or refuse other settings when a study goes on; kinds and seeds may be added.

    Raises:
        AlreadyExists: The study was begun with other settings.
        BadFile: They cannot be read.
    """
    settings = {
        "base": f"{setup.base.name} {setup.base.hash or ''}".strip(),
        "budget": options.budget,
        "purpose": options.purpose,
        "CLIP": str(clip or ""),
        "DINO": str(dino or ""),
        "--together": _describe_other(other),
        MEASURE_SETTING: f"{LIKENESS_MEASURE}; score with kept to the power of {KEPT_POWER:.3g}",
    }
    if options.purpose == "subject":
        settings[MEASURE_SETTING] += "; change of other things"
    stored = record_once(setup.folder / SETTINGS_NAME, settings, SETTINGS)
    for name, value in settings.items():
        if name != MEASURE_SETTING and stored.get(name, "") != value:
            raise AlreadyExists(
                f"{setup.folder} holds a study with another {name} ({stored.get(name) or 'none'}, not "
                f"{value or 'none'}): start it with the same settings to go on, or name another folder with --out "
                "(on a server, another name)"
            )
    if stored.get(MEASURE_SETTING, "") != settings[MEASURE_SETTING]:
        raise AlreadyExists(
            f"{setup.folder} holds a study that another version of velatura began, with another measure: "
            "name another folder with --out (on a server, another name)"
        )


def _describe_other(other: OtherFile | None) -> str:
    """Return name, hashes and strength; of safetensors the hash of the tensors alone: `tune` writes into the header."""
    if other is None:
        return ""
    files = find_adapters(other.path).values() if other.path.is_dir() else [other.path]  # a folder of peft
    hashes = " ".join((hashed.body or hashed.sha256)[:10] for hashed in map(Hashes.from_file, files))
    return f"{other.path.name} {hashes} at {other.strength:g}"


def _study_jobs(
    setup: TrialSetup,
    options: StudyOptions,
    clip: str | os.PathLike[str] | None,
    dino: str | os.PathLike[str] | None,
    other: OtherFile | None,
) -> list[StudyJob]:
    """Return all trials."""
    step_counts = _step_counts(setup, options)
    return [
        StudyJob(
            setup.folder.absolute(),
            setup.data.absolute(),
            setup.held_out_folder.absolute(),
            setup.captions,
            setup.name,
            setup.purpose,
            setup.base_argument,
            None if clip is None else Path(clip).expanduser().absolute(),
            None if dino is None else Path(dino).expanduser().absolute(),
            other,
            kind,
            seed,
            step_counts.get(kind, 0),
        )
        for kind, seed in options.trials()
    ]


def _check_options(options: StudyOptions) -> None:
    for kind in options.kinds:
        if kind not in KINDS:
            raise UnknownName.with_suggestions("kind of overlay to compare", kind, KINDS)
    if not options.kinds or options.seeds < 1:
        raise BadPlan("a study needs at least one kind and one seed: give kinds such as lora and hypernet, and seeds 3")
    if options.minutes <= 0 or (options.steps is not None and options.steps < 1):
        raise BadPlan("the budget of a study is above 0: give minutes such as 12, or steps such as 100")


def _prepare(
    pictures: Path, out: Path, options: StudyOptions, encoder: PictureEncoder, other: OtherFile | None
) -> TrialSetup:
    """Split the pictures into a folder to train on and one that is held out, or find both as they were."""
    base = encoder.base
    other_overlay = other and OtherOverlay.open(base, other)
    split = split_pictures(pictures, out)
    return TrialSetup(
        base,
        out,
        split.data,
        read_picture_set(split.held_out).images,
        split.held_out,
        split.captions,
        split.name,
        options.purpose,
        encoder,
        base_location(base.opened_from, base.name, base.open_options),
        other_overlay,
    )


def _step_counts(setup: TrialSetup, options: StudyOptions) -> dict[str, int]:
    """Return the steps of each kind: the same in every seed, and after an interruption."""
    trained = [kind for kind in options.kinds if kind not in UNTRAINED_KINDS]
    if options.steps is not None:
        return dict.fromkeys(trained, options.steps)
    path = setup.folder / BUDGET_NAME
    try:
        counts = STEP_COUNTS.validate_json(path.read_bytes()) if path.is_file() else {}
    except ValidationError:
        raise BadFile(f"{path} is damaged: remove it to measure the steps again") from None
    seconds = 60 * options.minutes * TRAINING_SHARE / options.trial_count
    counts |= {kind: max(1, int(seconds / setup.step_seconds(kind))) for kind in trained if kind not in counts}
    with atomic_write(path) as temp_path:
        temp_path.write_text(json.dumps(counts) + "\n", "utf-8")
    return counts


def _read_trial(setup: TrialSetup, job: StudyJob) -> Trial | None:
    """Read the result of a trial, None if it is not stored yet."""
    path = _trial_file(setup, job)
    if not path.is_file():
        return None
    try:
        return Trial.model_validate_json(path.read_bytes())
    except ValidationError:
        raise BadFile(f"{path} is damaged: remove it to judge the trial again") from None


def _trial_file(setup: TrialSetup, job: StudyJob) -> Path:
    return setup.folder / "trials" / f"{job.kind}-{job.seed}.json"


def _results(
    setup: TrialSetup, options: StudyOptions, pictures: Path, trials: Sequence[Trial], other: OtherFile | None
) -> StudyResults:
    order = {kind: number for number, kind in enumerate(options.kinds)}
    return StudyResults(
        pictures=str(pictures),
        base=setup.base.name,
        budget=str(options),
        training_pictures=len(list(setup.data.glob("*.txt"))),
        held_out_pictures=len(setup.held_out),
        trials=tuple(sorted(trials, key=lambda trial: (order[trial.kind], trial.seed))),
        together=other and f"{other.path.name} at {other.strength:g}",
    )


def _write(out: Path, report: StudyReport, results: StudyResults) -> None:
    if read_results(out / STUDY_RESULTS_NAME) == results and (out / REPORT_NAME).is_file():
        return
    with atomic_write(out / STUDY_RESULTS_NAME) as temp_path:
        temp_path.write_text(results.model_dump_json(indent=2) + "\n", "utf-8")
    page = report.page(results)
    with atomic_write(out / REPORT_NAME) as temp_path:
        temp_path.write_text(page, "utf-8")
