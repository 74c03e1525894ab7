"""Run short jobs that need the base or its device: write an overlay to begin with, describe an image, open the base."""

from __future__ import annotations

from typing import Any

from velatura.datasets.captioners.captioner import open_captioner
from velatura.errors import AlreadyExists
from velatura.formats.save import save
from velatura.overlays.embedding import Embedding
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay
from velatura.server.jobs.base_requests import BaseRequest, CreateRequest, DescribeRequest
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.training_requests import HypernetOptions


def run_create(context: JobContext) -> None:
    """Write an untrained overlay into the folder of models, as the .pt that A1111 reads too."""
    request = context.request
    assert isinstance(request, CreateRequest)
    path = context.resources.folders.models / f"{request.name}.pt"
    if path.exists() and not request.overwrite:
        raise AlreadyExists(f"a model is called {request.name} already: choose another name")
    base = context.resources.models.base(request.base)
    fields: dict[str, Any] = request.overlay.model_dump(exclude={"kind", "start"})
    overlay: Overlay
    if isinstance(request.overlay, HypernetOptions):
        overlay = Hypernetwork.for_base(base, **fields, name=request.name)
    else:
        overlay = Embedding.for_base(base, **fields, name=request.name)
    path.with_name(f"{path.name}.optim").unlink(missing_ok=True)  # of the file that was there before
    save(overlay, path)
    context.finish({"file": path.name, "kind": overlay.kind})


def run_describe(context: JobContext) -> None:
    """Describe an image."""
    request = context.request
    assert isinstance(request, DescribeRequest)
    image = context.resources.inputs.open(request.image).convert("RGB")
    context.step(0, None, "describing")
    context.finish({"caption": open_captioner(request.captioner, request.threshold).caption(image)})


def run_base(context: JobContext) -> None:
    """Open or close a base."""
    request, models = context.request, context.resources.models
    assert isinstance(request, BaseRequest)
    if request.is_open:
        context.finish({"base": models.base(request.base).name})
    else:
        models.close()
        context.finish({"base": None})
