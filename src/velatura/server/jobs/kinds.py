"""The table of kinds: what a job asks for, which worker runs it, and what is settled before it is queued."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from velatura.server.jobs import prepare
from velatura.server.jobs.base_requests import BaseRequest, CreateRequest, DescribeRequest
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.dataset_requests import CaptionRequest, CheckRequest, CropRequest
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.prepare import PreparationContext
from velatura.server.jobs.requests import GridRequest, JobRequest, PaintRequest
from velatura.server.jobs.service import JobService
from velatura.server.jobs.training_requests import (
    CompareRequest,
    EstimateRequest,
    ResumeRequest,
    TrainRequest,
    TuneRequest,
)
from velatura.server.jobs.weights_requests import (
    BakeRequest,
    ConvertRequest,
    ExtractRequest,
    MergeRequest,
    PullRequest,
)

Lane = Literal["device", "files"]
RunJob = Callable[[JobContext], None]
Prepare = Callable[[Any, PreparationContext], JobRequest]
AnyJobRequest = Annotated[
    PaintRequest
    | GridRequest
    | TrainRequest
    | ResumeRequest
    | EstimateRequest
    | CompareRequest
    | TuneRequest
    | MergeRequest
    | BakeRequest
    | ExtractRequest
    | ConvertRequest
    | PullRequest
    | CaptionRequest
    | CheckRequest
    | CropRequest
    | CreateRequest
    | DescribeRequest
    | BaseRequest,
    Field(discriminator="kind"),
]


class JobKind(NamedTuple):
    """A kind of job.

    Attributes:
        request: What it asks for.
        lane: "device" for the worker that owns base and device, "files" for the other one.
        runner: Module in `server.runners` and function that run it; imported on first use, as it imports torch.
        prepare: Settles a request before it is queued.
    """

    request: type[JobRequest]
    lane: Lane
    runner: str
    prepare: Prepare

    def run(self, context: JobContext) -> None:
        """Run a job of this kind."""
        module, function = self.runner.split(":")
        run: RunJob = getattr(import_module(f"velatura.server.runners.{module}"), function)
        run(context)


JOB_KINDS: Mapping[str, JobKind] = {
    "paint": JobKind(PaintRequest, "device", "paint:run_paint", prepare.prepare_paint),
    "grid": JobKind(GridRequest, "device", "grid:run_grid", prepare.prepare_grid),
    "train": JobKind(TrainRequest, "device", "train:run_train", prepare.prepare_train),
    "resume": JobKind(ResumeRequest, "device", "train:run_resume", prepare.prepare_resume),
    "estimate": JobKind(EstimateRequest, "device", "estimate:run_estimate", prepare.prepare_estimate),
    "compare": JobKind(CompareRequest, "device", "studies:run_compare", prepare.prepare_compare),
    "tune": JobKind(TuneRequest, "device", "studies:run_tune", prepare.prepare_tune),
    "merge": JobKind(MergeRequest, "device", "weights:run_merge", prepare.prepare_file),
    "bake": JobKind(BakeRequest, "device", "weights:run_bake", prepare.prepare_file),
    "extract": JobKind(ExtractRequest, "device", "weights:run_extract", prepare.prepare_file),
    "convert": JobKind(ConvertRequest, "device", "weights:run_convert", prepare.prepare_file),
    "pull": JobKind(PullRequest, "files", "weights:run_pull", prepare.prepare_pull),
    "create": JobKind(CreateRequest, "device", "base:run_create", prepare.prepare_create),
    "describe": JobKind(DescribeRequest, "device", "base:run_describe", prepare.prepare_describe),
    "base": JobKind(BaseRequest, "device", "base:run_base", prepare.prepare_base),
    "caption": JobKind(CaptionRequest, "device", "datasets:run_caption", prepare.prepare_dataset),
    "check": JobKind(CheckRequest, "files", "datasets:run_check", prepare.prepare_dataset),
    "crop": JobKind(CropRequest, "files", "datasets:run_crop", prepare.prepare_crop),
}
# The kinds that a cluster runs, if the server has one
CLUSTER_KINDS = ("paint", "grid", "compare", "tune")


def submit(
    request: JobRequest, service: JobService, preparation: PreparationContext, warnings: Sequence[str] = ()
) -> ServerJob:
    """Settle a request and put it into the queue.

    Args:
        request: The request.
        service: The queue.
        preparation: Limits, folders and the place for images.
        warnings: Warnings that the job begins with.

    Raises:
        ApiError: The request is beyond a limit, names what does not exist, or an image in it cannot be read.
        VelaturaError: The request contradicts itself.
    """
    name, kind = next((name, kind) for name, kind in JOB_KINDS.items() if kind.request is type(request))
    service.check_room()
    return service.submit(name, kind.lane, kind.prepare(request, preparation), warnings)
