"""Which kind of overlay serves some pictures best: every kind trained under one budget, judged alike, and reported."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.compare.picture_features import PictureEncoder
from velatura.compare.picture_sets import read_picture_set
from velatura.errors import BadPlan, UnknownName, gather_warnings, quantity
from velatura.files import atomic_write, parse_json
from velatura.studies.cluster import BaseReference, check_ray_installed, connect
from velatura.studies.pictures import split_pictures
from velatura.studies.report import study_page
from velatura.studies.results import StudyResults, Trial, read_results
from velatura.studies.trials import KINDS, UNTRAINED_KINDS, StudyJob, TrialSetup, run_study_job, run_trial
from velatura.training.run.recorded_base import base_location
from velatura.training.run.report import OnStage

DEFAULT_KINDS = ("embedding", "hypernet", "lora", "dreambooth", "aesthetic")
DEFAULT_MINUTES, DEFAULT_SEEDS = 12.0, 3
TRAINING_SHARE = 0.6  # of the minutes; the rest is for judging
RESULTS_NAME, PAGE_NAME, BUDGET_NAME = "study.json", "index.html", "budget.json"

OnTrial = Callable[[str, int, int], None]  # what is done, trials done, and trials in all


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

    def __str__(self) -> str:
        budget = quantity(self.steps, "step") if self.steps else f"{self.minutes:g} minutes in all"
        return f"{budget}, {self.seeds} seed{'s' * (self.seeds != 1)} of each kind"


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
        clip: The folder of a whole CLIP, used instead of the base's.
        dino: The folder of a DINO.
        ray: Address of a Ray cluster on which trials run side by side, "local" for one on this machine; see
            `velatura.studies.cluster.connect`. None: one after another in this process. Seconds of training are those
            of the worker, so compare them only between machines that are alike.
        on_trial: Called before each trial with what is done, trials done, and trials in all; on a cluster after it.
        on_stage: Called while a trial goes on, after each training step and each strength that is painted; not on a
            cluster.

    Returns:
        The results; print them, or their `recommendation()`.

    Raises:
        UnknownName: A kind does not exist.
        BadDataset: There are fewer than four pictures, or other pictures than when the study was begun.
        BadPlan: The budget is not above 0.
        BadSettings: No Ray cluster answers at the address, or Ray is not installed.
        ProcessFailed: The workers of a trial died again and again.
    """
    if ray is not None:
        check_ray_installed()
    base, out = to_base(base), Path(out).expanduser()
    options = StudyOptions(tuple(dict.fromkeys(kinds)), seeds, steps, minutes, purpose)
    _check_options(options)
    setup = _prepare(base, Path(pictures).expanduser(), out, options, PictureEncoder.open(base, clip=clip, dino=dino))
    step_counts = _step_counts(setup, options)
    trials: list[Trial] = []
    if ray is not None:
        jobs = _study_jobs(setup, options, step_counts, clip, dino)
        with connect(ray) as cluster:
            reference, folders = BaseReference.from_base(base), [setup.folder, setup.data, setup.held_out_folder]
            for done, (job, trial) in enumerate(cluster.run(run_study_job, reference, jobs, folders), 1):
                _store_trial(setup, job.kind, job.seed, trial)
                if on_trial:
                    on_trial(f"{job.kind}, seed {job.seed}", done, len(jobs))
    for done, (kind, seed) in enumerate(options.trials()):
        if on_trial and ray is None:
            on_trial(f"{kind}, seed {seed}", done, options.trial_count)
        trials.append(_stored_trial(setup, kind, seed, step_counts, on_stage))
        results = _results(setup, options, Path(pictures), trials)
        if ray is None:
            _write(out, setup, results)
    results = _results(setup, options, Path(pictures), trials)
    _write(out, setup, results)
    return results


def _study_jobs(
    setup: TrialSetup,
    options: StudyOptions,
    step_counts: dict[str, int],
    clip: str | os.PathLike[str] | None,
    dino: str | os.PathLike[str] | None,
) -> list[StudyJob]:
    """Return the trials that are not stored yet."""
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
            kind,
            seed,
            step_counts.get(kind, 0),
        )
        for kind, seed in options.trials()
        if not _trial_file(setup, kind, seed).is_file()
    ]


def _check_options(options: StudyOptions) -> None:
    for kind in options.kinds:
        if kind not in KINDS:
            raise UnknownName.with_suggestions("kind of overlay to compare", kind, KINDS)
    if not options.kinds or options.seeds < 1:
        raise BadPlan("a study needs at least one kind and one seed: give kinds such as lora and hypernet, and seeds 3")
    if options.minutes <= 0 or (options.steps is not None and options.steps < 1):
        raise BadPlan("the budget of a study is above 0: give minutes such as 12, or steps such as 100")


def _prepare(base: Base, pictures: Path, out: Path, options: StudyOptions, encoder: PictureEncoder) -> TrialSetup:
    """Split the pictures into a folder to train on and one that is held out, or find both as they were."""
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
    )


def _step_counts(setup: TrialSetup, options: StudyOptions) -> dict[str, int]:
    """Return the steps of each kind: the same in every seed, and after an interruption."""
    trained = [kind for kind in options.kinds if kind not in UNTRAINED_KINDS]
    if options.steps is not None:
        return dict.fromkeys(trained, options.steps)
    path = setup.folder / BUDGET_NAME
    stored = parse_json(path.read_text("utf-8")) if path.is_file() else None
    fields = cast("dict[str, object]", stored) if isinstance(stored, dict) else {}
    counts = {kind: count for kind, count in fields.items() if isinstance(count, int)}
    seconds = 60 * options.minutes * TRAINING_SHARE / options.trial_count
    counts |= {kind: max(1, int(seconds / setup.step_seconds(kind))) for kind in trained if kind not in counts}
    with atomic_write(path) as temp_path:
        temp_path.write_text(json.dumps(counts) + "\n", "utf-8")
    return counts


def _stored_trial(
    setup: TrialSetup, kind: str, seed: int, step_counts: dict[str, int], on_stage: OnStage | None
) -> Trial:
    """Return a trial, run if its result is not stored yet."""
    path = _trial_file(setup, kind, seed)
    if path.is_file():
        return Trial.model_validate_json(path.read_bytes())
    trial = run_trial(setup, kind, seed, step_counts.get(kind, 0), on_stage=on_stage)
    _store_trial(setup, kind, seed, trial)
    return trial


def _trial_file(setup: TrialSetup, kind: str, seed: int) -> Path:
    return setup.folder / "trials" / f"{kind}-{seed}.json"


def _store_trial(setup: TrialSetup, kind: str, seed: int, trial: Trial) -> None:
    with atomic_write(_trial_file(setup, kind, seed)) as temp_path:
        temp_path.write_text(trial.model_dump_json(indent=2) + "\n", "utf-8")


def _results(setup: TrialSetup, options: StudyOptions, pictures: Path, trials: Sequence[Trial]) -> StudyResults:
    order = {kind: number for number, kind in enumerate(options.kinds)}
    return StudyResults(
        pictures=str(pictures),
        base=setup.base.name,
        budget=str(options),
        training_pictures=len(list(setup.data.glob("*.txt"))),
        held_out_pictures=len(setup.held_out),
        trials=tuple(sorted(trials, key=lambda trial: (order[trial.kind], trial.seed))),
    )


def _write(out: Path, setup: TrialSetup, results: StudyResults) -> None:
    if read_results(out / RESULTS_NAME) == results and (out / PAGE_NAME).is_file():
        return
    with atomic_write(out / RESULTS_NAME) as temp_path:
        temp_path.write_text(results.model_dump_json(indent=2) + "\n", "utf-8")
    page = study_page(results, setup)
    with atomic_write(out / PAGE_NAME) as temp_path:
        temp_path.write_text(page, "utf-8")
