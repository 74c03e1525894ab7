"""Run trainings: begin them, go on after the server's end, and tell what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from velatura.base.base import Base
from velatura.errors import AlreadyExists, BadOverlay, BadPlan, UnknownName
from velatura.files import atomic_write
from velatura.formats.open import open_overlay
from velatura.formats.save import save
from velatura.overlays.difference import Difference
from velatura.overlays.embedding import Embedding
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.server.errors import hide_paths
from velatura.server.folders import resolve_inside
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.prepare import make_plan
from velatura.server.jobs.training_requests import (
    AestheticOptions,
    DreamboothOptions,
    EmbeddingOptions,
    HypernetOptions,
    LoraOptions,
    ResumeRequest,
    TrainingFields,
    TrainRequest,
)
from velatura.server.views.runs import SHEETS, found_strength, run_tag
from velatura.tiny import DATA_FOLDER
from velatura.training.kinds.aesthetic import aesthetic_from
from velatura.training.kinds.class_images import caption_class_pictures, make_class_pictures
from velatura.training.kinds.dreambooth import save_dreambooth
from velatura.training.kinds.pivotal import PivotalLora
from velatura.training.run.folder import file_name
from velatura.training.run.recorded_base import RecordedBase
from velatura.training.run.report import Run, Stage, Step
from velatura.training.run.summary import is_run_folder, read_run
from velatura.training.train import resume, train


def run_train(context: JobContext) -> None:
    """Train an overlay; a job that was interrupted goes on from the last snapshot of its run."""
    request = context.request
    assert isinstance(request, TrainRequest)
    assert request.run is not None
    if isinstance(request.overlay, AestheticOptions):
        _make_aesthetic(context, request, request.overlay)
        return
    folders, models = context.resources.folders, context.resources.models
    run_folder = folders.runs / request.run
    if is_run_folder(run_folder):
        _continue(context, run_folder, request.base, data_changed=False)
        return
    base = models.base(request.base)
    dataset = folders.dataset(request.dataset)
    plan = make_plan(request, base.family.name, folders)
    if isinstance(request.overlay, DreamboothOptions) and request.overlay.class_prompt is not None:
        _make_class_pictures(context, base, dataset, request.overlay, plan.seed)
    overlay = make_overlay(context, base, request, plan.seed)
    run = train(base, overlay, dataset, plan, out=run_folder, on_step=_on_step(context), on_stage=_on_stage(context))
    _finish(context, base, run)


def run_resume(context: JobContext) -> None:
    """Continue a run."""
    request = context.request
    assert isinstance(request, ResumeRequest)
    run_folder = resolve_inside(context.resources.folders.runs, request.run, "run")
    _continue(context, run_folder, request.base, data_changed=request.data_changed)


def _continue(context: JobContext, run_folder: Path, base_name: str | None, *, data_changed: bool) -> None:
    """Continue a run to its end, or tell what came of one that is finished."""
    models = context.resources.models
    if read_run(run_folder).state == "finished":
        context.finish(describe_run(run_folder, context.resources.folders.roots))
        return
    base = models.base(base_name) if base_name else _base_of_run(context, run_folder)
    run = resume(base, run_folder, on_step=_on_step(context), on_stage=_on_stage(context), data_changed=data_changed)
    _finish(context, base, run)


def _base_of_run(context: JobContext, run_folder: Path) -> Base:
    """Open the base that a run began on: our own, or one of the library with the same file or name."""
    models, place = context.resources.models, RecordedBase.of_run(run_folder).location
    own = models.base()
    if own.name in {place, Path(place).stem}:
        return own
    try:
        return models.base(place)
    except UnknownName:
        return models.base(Path(place).stem)


def make_overlay(context: JobContext, base: Base, request: TrainingFields, seed: int) -> Overlay:
    """Return the untrained overlay of a request, or the one that is trained further.

    Args:
        context: The job.
        base: The base.
        request: What was asked for.
        seed: Draws the first weights.

    Raises:
        BadOverlay: Its options contradict each other, or what is trained further is of another kind.
    """
    name, options = request.name or request.dataset, request.overlay
    fields: dict[str, Any] = options.model_dump(exclude={"kind"})
    if isinstance(options, HypernetOptions | EmbeddingOptions) and fields.pop("start") is not None:
        return _open_start(context, options, name)
    if isinstance(options, HypernetOptions):
        return Hypernetwork.for_base(base, **fields, seed=seed, name=name)
    if isinstance(options, EmbeddingOptions):
        return Embedding.for_base(base, **fields, seed=seed, name=name)
    if isinstance(options, DreamboothOptions):
        return Difference.for_base(base, text=options.text, name=name)
    assert isinstance(options, LoraOptions)
    word, vectors, initial = (fields.pop(field) for field in ("word", "vectors", "initial"))
    lora = Lora.for_base(base, **fields, seed=seed, name=name)
    if word is None:
        return lora
    return PivotalLora.from_lora(lora, Embedding.for_base(base, name=word, vectors=vectors, initial=initial, seed=seed))


def _open_start(context: JobContext, options: HypernetOptions | EmbeddingOptions, name: str) -> Overlay:
    """Open an overlay of the library to train it further, and refuse options of a structure, which it has."""
    assert options.start is not None
    given = options.model_fields_set - {"kind", "start"}
    if given:
        raise BadOverlay(f"{options.start} has a structure already, which start keeps: leave out {sorted(given)[0]}")
    overlay = open_overlay(context.resources.models.library.path(options.start, options.kind))
    if overlay.kind != options.kind:
        wanted = Hypernetwork.kind_name if options.kind == Hypernetwork.kind else Embedding.kind_name
        raise BadOverlay(f"{options.start} is a {overlay.kind_name}, and start needs a {wanted}: name one")
    overlay.card = overlay.card.replace(name=name)
    return overlay


def _make_class_pictures(context: JobContext, base: Base, dataset: Path, options: DreamboothOptions, seed: int) -> None:
    if dataset.is_relative_to(DATA_FOLDER):
        raise BadPlan("class pictures cannot be kept in a bundled set: upload pictures of your own")
    assert options.class_prompt is not None

    def on_picture(done: int, total: int) -> None:
        context.mark_stored()
        context.step(done, total, "painting class pictures")

    caption_class_pictures(dataset, options.class_prompt)
    make_class_pictures(
        base,
        dataset,
        options.class_prompt,
        options.class_pictures,
        seed=seed,
        on_picture=on_picture,
    )


def _make_aesthetic(context: JobContext, request: TrainRequest, options: AestheticOptions) -> None:
    folders, models = context.resources.folders, context.resources.models
    name = request.name or request.dataset
    path = folders.runs / str(request.run) / f"{file_name(name)}.safetensors"
    if path.exists():
        raise AlreadyExists(f"{path.name} is there already: choose another name")
    base = models.base(request.base)
    settings: dict[str, Any] = {"steps": options.steps} | ({} if options.rate is None else {"rate": options.rate})
    context.step(0, None, "reading pictures")
    aesthetic = aesthetic_from(base, folders.dataset(request.dataset), name=name, **settings)
    save(aesthetic, path)
    context.finish({"run": request.run, "file": path.name, "kind": aesthetic.kind, "tag": f"<aesthetic:{path.stem}:1>"})


def _on_step(context: JobContext) -> Callable[[Step], None]:
    def on_step(step: Step) -> None:
        if step.is_stored:
            context.mark_stored()
        context.step(step.done, step.total, "training", loss=step.loss, rate=step.rate)
        context.check()

    return on_step


def _on_stage(context: JobContext) -> Callable[[Stage], None]:
    def on_stage(stage: Stage) -> None:
        context.check()
        context.step(stage.done, stage.total, stage.name)

    return on_stage


def _finish(context: JobContext, base: Base, run: Run) -> None:
    """End the job: write a DreamBooth's checkpoint if one is asked for, and tell what came of the run."""
    options = context.request.overlay if isinstance(context.request, TrainRequest) else None
    extra: dict[str, object] = {}
    if isinstance(options, DreamboothOptions) and options.form != "difference":
        assert isinstance(run.overlay, Difference)
        written = save_dreambooth(options.form, base, run.overlay, run.folder / f"{run.file.stem}-{options.form}")
        extra["model"] = written.name
    if isinstance(context.request, TrainRequest) and context.request.keep_as is not None:
        _keep(run, context.resources.folders.models / f"{context.request.keep_as}.pt")
    context.finish(describe_run(run.folder, context.resources.folders.roots) | extra)


def _keep(run: Run, target: Path) -> None:
    """Put the result into the folder of models as a .pt, with the optimizer's state if the run wrote it for A1111."""
    for suffix in (".pt.optim", ".pt"):
        source, copy = run.file.with_suffix(suffix), target.with_suffix(suffix)
        if source.is_file():
            with atomic_write(copy) as temporary:
                temporary.write_bytes(source.read_bytes())
        elif suffix == ".pt":
            save(run.overlay, copy)
        else:
            copy.unlink(missing_ok=True)  # it belongs to the file that is replaced


def describe_run(run_folder: Path, roots: Iterable[Path]) -> dict[str, object]:
    """Return what came of a run: its file, the tag that calls it, losses, its verdict, and pictures to look at.

    Args:
        run_folder: The run folder.
        roots: Folders whose paths are hidden in the verdict.
    """
    summary = read_run(run_folder)
    name, kind = summary.name, summary.overlay_kind
    return {
        "run": run_folder.name,
        "file": f"{name}.safetensors",
        "kind": kind,
        "tag": run_tag(summary),
        "strength": found_strength(summary),
        "steps": summary.steps,
        "first_loss": summary.first_loss,
        "last_loss": summary.last_loss,
        "best_step": summary.best_step,
        "verdict": [hide_paths(line, roots) for line in str(summary.verdict or "").splitlines()],
        "pictures": [],
        "sheets": [picture for picture in SHEETS if (run_folder / picture).is_file()],
    }
