"""The table of kinds: what a job asks for, which worker runs it, and what is settled before it is queued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Literal, NamedTuple

from velatura.server.inputs import InputStore
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.prepare import prepare_grid, prepare_paint
from velatura.server.jobs.requests import GridRequest, JobRequest, PaintRequest
from velatura.server.jobs.service import JobService
from velatura.server.settings import ServerSettings

Lane = Literal["device", "files"]
RunJob = Callable[[JobContext], None]
Prepare = Callable[[Any, ServerSettings, InputStore], JobRequest]


class JobKind(NamedTuple):
    """A kind of job.

    Attributes:
        request: What it asks for.
        lane: "device" for the worker that owns base and device, "files" for the other one.
        runner: Module in this package and function that run it; imported on first use, as it imports torch.
        prepare: Settles a request before it is queued: draws seeds, stores images, checks limits.
    """

    request: type[JobRequest]
    lane: Lane
    runner: str
    prepare: Prepare | None = None

    def run(self, context: JobContext) -> None:
        """Run a job of this kind."""
        module, function = self.runner.split(":")
        run: RunJob = getattr(import_module(f"velatura.server.jobs.{module}"), function)
        run(context)


JOB_KINDS: Mapping[str, JobKind] = {
    "paint": JobKind(PaintRequest, "device", "paint:run_paint", prepare_paint),
    "grid": JobKind(GridRequest, "device", "grid:run_grid", prepare_grid),
}


def submit(request: JobRequest, service: JobService, settings: ServerSettings, inputs: InputStore) -> ServerJob:
    """Settle a request and put it into the queue.

    Raises:
        ApiError: The request is beyond a limit, or an image in it cannot be read.
    """
    name, kind = next((name, kind) for name, kind in JOB_KINDS.items() if kind.request is type(request))
    if kind.prepare is not None:
        request = kind.prepare(request, settings, inputs)
    return service.submit(name, kind.lane, request)
