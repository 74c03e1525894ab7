"""Run studies: which kind of overlay serves some pictures best, and which strength serves an overlay best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from velatura.compare.tune import tune
from velatura.errors import BadDataset
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.training_requests import DEFAULT_MINUTES, CompareRequest, TuneRequest
from velatura.server.views.studies import describe_study
from velatura.studies.study import study
from velatura.training.run.report import Stage
from velatura.training.run.summary import is_run_folder, read_run


def run_compare(context: JobContext) -> None:
    """Train and judge every kind; a study that was interrupted goes on where it was."""
    request, folders = context.request, context.resources.folders
    assert isinstance(request, CompareRequest)
    assert request.study is not None
    out = folders.studies / request.study
    trial = ""

    def on_trial(name: str, done: int, total: int) -> None:
        nonlocal trial
        if trial:
            context.mark_stored()  # the trial before this one
        trial = f"trial {done + 1} of {total}, {name}"
        context.check()
        context.log(trial)
        context.step(done, total, trial)

    def on_stage(stage: Stage) -> None:
        context.check()
        context.step(stage.done, stage.total, f"{trial}: {stage.name}")

    other = request.together
    other_path = None if other is None else context.resources.models.library.path(other.name)
    base = context.resources.models.base(request.base)
    study(
        base,
        folders.dataset(request.dataset),
        out=out,
        kinds=request.kinds,
        seeds=request.seeds,
        steps=request.steps,
        minutes=DEFAULT_MINUTES if request.minutes is None else request.minutes,
        purpose=request.purpose,
        together=other_path,
        together_strength=1.0 if other is None else other.strength,
        on_trial=on_trial,
        on_stage=on_stage,
    )
    context.finish({"study": request.study, **describe_study(out)})


def run_tune(context: JobContext) -> None:
    """Paint an overlay at several strengths, and write the best one beside it."""
    request = context.request
    assert isinstance(request, TuneRequest)
    path = context.resources.models.library.path(request.overlay)
    if path.is_dir():
        raise BadDataset(f"{request.overlay} is a folder, beside which no strength is written: name a file")
    pictures = _pictures(context, request, path)
    options: dict[str, Any] = {} if request.prompts is None else {"prompts": list(request.prompts)}

    def on_strength(done: int, total: int) -> None:
        context.check()
        context.step(done, total, "painting strengths")

    base = context.resources.models.base(request.base)
    tuning = tune(
        base, path, pictures=pictures, seeds=request.seeds, steps=request.steps, on_strength=on_strength, **options
    )
    if request.write:
        tuning.write(path)
    context.finish(
        {
            "overlay": request.overlay,
            "strength": tuning.strength,
            "low": tuning.low,
            "high": tuning.high,
            "note": tuning.note,
            "reference": tuning.reference,
            "points": [
                {"strength": point.strength, "likeness": point.likeness, "kept": point.kept, "score": point.score}
                for point in tuning.points
            ],
        }
    )


def _pictures(context: JobContext, request: TuneRequest, path: Path) -> Path | None:
    """Return the dataset of a request, else the pictures of the run that made the file, if they are still there."""
    folders = context.resources.folders
    if request.dataset is not None:
        return folders.dataset(request.dataset)
    run = next((folder for folder in (path.parent, path.parent.parent) if is_run_folder(folder)), None)
    pictures = None if run is None else Path(read_run(run).pictures)
    return pictures if pictures is not None and pictures.is_dir() else None
