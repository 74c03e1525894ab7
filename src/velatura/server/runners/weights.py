"""Run jobs on files of weights: merge, bake, extract, convert, pull."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from velatura.base.base import Base
from velatura.downloads.pull import pull
from velatura.errors import BadRecipe
from velatura.formats.checkpoints import write_single_file
from velatura.formats.open import open_overlay
from velatura.formats.save import save
from velatura.merging.bake.bake import bake
from velatura.merging.checkpoints.merge import merge
from velatura.merging.checkpoints.metadata import parse_fields
from velatura.merging.checkpoints.options import Saving
from velatura.merging.lora.combine import combine
from velatura.merging.lora.extract import extract
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength
from velatura.server.errors import hide_paths
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.weights_requests import (
    BakeRequest,
    ConvertRequest,
    ExtractRequest,
    MergeRequest,
    OverlayWithStrengths,
    PullRequest,
)
from velatura.server.models import TINY

REPORT_KEY = "velatura.bake"  # where the report is kept in a file's header
LORA_DTYPE = "float16"  # what LoRAs are shared in
OnProgress = Callable[[int, int | None], None]


def run_merge(context: JobContext) -> None:
    """Merge models, or LoRAs, into one file of the library."""
    request = context.request
    assert isinstance(request, MergeRequest)
    target = _target(context, request.name)
    if request.loras:
        _combine(context, request, target)
        return
    import json

    saving = Saving.model_validate(
        {
            "dtype": request.dtype,
            "vae": None if request.vae is None else context.resources.models.library.entry(request.vae, "vae").path,
            "discard": request.discard,
            "config": request.config,
            "metadata": parse_fields(json.dumps(request.metadata)),
            "copies_metadata": request.copies_metadata,
            "keeps_recipe": request.keeps_recipe,
        }
    )
    models = [_find_model(context, name) for name in request.models]
    model_a, model_b, model_c = [*models, None, None][:3]
    if model_a is None:
        raise BadRecipe("a merge needs models or LoRAs: name two models, or the LoRAs")
    _, report = merge(
        model_a,
        model_b,
        request.strength,
        minus=model_c,
        mode=request.mode,
        blocks=request.blocks,
        share=request.share,
        seed=request.seed,
        against=None if request.against is None else _find_model(context, request.against),
        saving=saving,
        out=target,
        on_tensor=_progress(context, "merging"),
    )
    _finish(context, target, str(report))


def _combine(context: JobContext, request: MergeRequest, target: Path) -> None:
    if request.models:
        raise BadRecipe("models and LoRAs are given: LoRAs merge with LoRAs; bake puts one into a model")
    base = None if request.base is None else context.resources.models.base(request.base)
    loras = [_open_overlay(context, lora) for lora in request.loras]
    combined, report = combine(loras, rank=request.rank, tolerance=request.tolerance, base=base, name=target.stem)
    save(combined, target, dtype=request.dtype or LORA_DTYPE)
    _finish(context, target, str(report))


def run_bake(context: JobContext) -> None:
    """Bake overlays into a base, and write it as a checkpoint of the library."""
    request = context.request
    assert isinstance(request, BakeRequest)
    target = _target(context, request.name)
    base = context.resources.models.base(request.base)
    overlays = [_open_overlay(context, overlay) for overlay in request.overlays]
    baked, report = bake(
        base, overlays, prompts=request.prompts, steps=request.steps, on_step=_progress(context, "fitting")
    )
    write_single_file.write(baked, target, {REPORT_KEY: report.model_dump_json()})
    _finish(context, target, str(report))


def run_extract(context: JobContext) -> None:
    """Write the difference of two models as a LoRA of the library."""
    request = context.request
    assert isinstance(request, ExtractRequest)
    target = _target(context, request.name)
    lora, report = extract(
        _find_model(context, request.base),
        _find_model(context, request.other),
        request.rank,
        tolerance=request.tolerance,
        conv_rank=request.conv_rank,
        text=request.text,
        name=target.stem,
        on_weight=_progress(context, "extracting"),
    )
    save(lora, target, dtype=request.dtype)
    _finish(context, target, str(report))


def run_convert(context: JobContext) -> None:
    """Write an overlay of the library in another file format."""
    request = context.request
    assert isinstance(request, ConvertRequest)
    target = _target(context, request.name, f".{request.ending}")
    overlay = open_overlay(context.resources.models.library.path(request.overlay))
    save(overlay, target, dialect=request.dialect, dtype=request.dtype)
    _finish(context, target, str(overlay.card))


def run_pull(context: JobContext) -> None:
    """Download a model file into the folder of new models; an interrupted download goes on."""
    request = context.request
    assert isinstance(request, PullRequest)
    folder = context.resources.folders.models
    result = pull(request.source, folder, limit=request.limit, on_bytes=_progress(context, "downloading"))
    facts = result.model_dump(mode="json", exclude={"path"})
    context.finish({"file": result.path.relative_to(folder).as_posix(), **facts})


def _target(context: JobContext, name: str, ending: str = ".safetensors") -> Path:
    """Return the path of the new file; its name was reserved when the job was queued."""
    return context.resources.folders.models / f"{name}{ending}"


def _find_model(context: JobContext, name: str) -> Base | Path:
    """Return the path of a model of the library, or the open base for tiny and for the server's own base."""
    models = context.resources.models
    if name in {TINY, models.base_name}:
        return models.base(name)
    return models.library.entry(name, "checkpoint").path


def _open_overlay(context: JobContext, wanted: OverlayWithStrengths) -> tuple[Overlay, float | Strength]:
    """Open an overlay of the library; one without a name gets its file's name."""
    overlay = open_overlay(context.resources.models.library.path(wanted.name))
    overlay.name_after_file()
    if wanted.text is None:
        return overlay, wanted.strength
    return overlay, Strength(text=wanted.text, unet=wanted.strength)


def _progress(context: JobContext, stage: str) -> OnProgress:
    def report(done: int, total: int | None) -> None:
        context.check()
        context.step(done, total, stage)

    return report


def _finish(context: JobContext, target: Path, report: str) -> None:
    lines = [hide_paths(line, context.resources.folders.roots) for line in report.splitlines()]
    context.finish({"file": target.name, "name": target.stem, "report": lines})
