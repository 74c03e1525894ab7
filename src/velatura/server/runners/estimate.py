"""Run estimates: what a training would take, and whether it would be refused, before anything is written."""

from __future__ import annotations

from velatura.base.base import Base
from velatura.datasets.folder import Dataset, read_dataset
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.prepare import make_plan
from velatura.server.jobs.training_requests import AestheticOptions, EstimateRequest
from velatura.server.runners.train import make_overlay
from velatura.training.data.cache import mirrored_examples, training_examples
from velatura.training.estimate import estimate
from velatura.training.train import check_plan, warn_of_limits

MAX_NAMES = 10  # of pictures whose file name is their caption


def run_estimate(context: JobContext) -> None:
    """Look at a training as `velatura train --dry-run` does: pictures, plan, time and memory."""
    request, folders = context.request, context.resources.folders
    assert isinstance(request, EstimateRequest)
    context.step(0, None, "measuring a step")
    base = context.resources.models.base(request.base)
    dataset = read_dataset(folders.dataset(request.dataset))
    unwritten = [example.path.name for example in dataset.examples if example.is_caption_from_name]
    pictures = {
        "pictures": len(dataset.examples),
        "class_pictures": len(dataset.regularisation),
        "captions_from_names": len(unwritten),
        "names": unwritten[:MAX_NAMES],
    }
    if isinstance(request.overlay, AestheticOptions):  # made at once, without steps
        context.finish({"base": base.name, **pictures})
        return
    context.finish({"base": base.name, **pictures, **_measure(context, request, base, dataset)})


def _measure(context: JobContext, request: EstimateRequest, base: Base, dataset: Dataset) -> dict[str, object]:
    """Measure a step, and return what the whole training takes and what it does."""
    plan = make_plan(request, base.family.name, context.resources.folders)
    overlay = make_overlay(context, base, request, plan.seed)
    check_plan(base, overlay, dataset, plan)
    warn_of_limits(base, overlay, dataset)
    taken = estimate(base, overlay, plan)
    steps, examples = plan.rates().end, training_examples(dataset, plan)
    return {
        "overlay": str(overlay.card),
        "parameters": sum(weight.numel() for weight in overlay.parameters()),
        "steps": steps,
        "mirror_images": len(mirrored_examples(dataset.examples)) if plan.flip else 0,
        "times_seen": round(steps * plan.batch_size * plan.accumulation / len(examples), 1),
        "seconds": round(taken.seconds, 1),
        "memory": taken.memory,
    }
