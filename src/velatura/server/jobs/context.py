"""What a running job has: its request, the server's folders and models, and ways to report and to be stopped."""

from __future__ import annotations

import base64
import io
import logging
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from velatura.errors import VelaturaError, redirect_warnings
from velatura.server.errors import INTERNAL, ApiError, ErrorDetail, describe_error, hide_paths
from velatura.server.folders import Folders
from velatura.server.inputs import InputStore
from velatura.server.jobs.events import EventType
from velatura.server.jobs.job import EndState, JobProgress, JobStopped, ServerJob
from velatura.server.jobs.pictures import PictureStore, StoredPicture
from velatura.server.jobs.requests import JobRequest
from velatura.server.jobs.service import JobService
from velatura.server.models import Models
from velatura.server.settings import ServerSettings

if TYPE_CHECKING:
    from PIL.Image import Image

    from velatura.sampling.generate import Picture

LOG = logging.getLogger("velatura.server")
STEP_SECONDS = 0.1  # between two step events of a job
MAX_WARNINGS = 100  # of a job
MakePreviews = Callable[[], Mapping[int, "Image"]]  # the previews of pictures by their positions


class JobResources(NamedTuple):
    """Resources that all jobs share.

    Attributes:
        settings: The server's settings.
        folders: The server's folders.
        service: Queue and events.
        pictures: The history of pictures.
        inputs: The images of requests.
        models: The open base and the library; only for jobs of the lane "device".
    """

    settings: ServerSettings
    folders: Folders
    service: JobService
    pictures: PictureStore
    inputs: InputStore
    models: Models


class JobContext:
    """A running job.

    Attributes:
        job: The job as it was when it was taken.
        request: Its request.
        resources: What all jobs share.
    """

    def __init__(self, job: ServerJob, request: JobRequest, resources: JobResources) -> None:
        self.job, self.request, self.resources = job, request, resources
        self._warnings = [*job.warnings]
        self._last_step = 0.0
        self.has_ended = False

    def check(self) -> None:
        """Raise JobStopped if the job is cancelled or the server ends."""
        if self.resources.service.is_stopping.is_set() or self.is_cancelled:
            raise JobStopped

    @property
    def is_cancelled(self) -> bool:
        """True if the job is to end."""
        return self.resources.service.is_cancelled(self.job.id)

    def takes_skip(self) -> bool:
        """Return True once after each request to skip a picture."""
        return self.resources.service.takes_skip(self.job.id)

    def publish(self, kind: EventType, /, **data: object) -> None:
        """Publish an event of this job."""
        self.resources.service.events.publish(self.job.id, kind, **data)

    def step(
        self, done: int, total: int | None, stage: str, *, previews: MakePreviews | None = None, **data: float | None
    ) -> None:
        """Report a step: at most one in STEP_SECONDS is stored and published, and the last one.

        Args:
            done, total: Steps taken, and in all.
            stage: What is being done, as "painting".
            previews: Makes previews, only for steps that are published.
            **data: More numbers of the event, as `loss`.
        """
        now = time.monotonic()
        if now - self._last_step < STEP_SECONDS and done != total:
            return
        self._last_step = now
        self.resources.service.queue.save_progress(self.job.id, JobProgress(done=done, total=total, stage=stage))
        images = {} if previews is None else {str(key): image_url(image) for key, image in previews().items()}
        more = {key: value for key, value in data.items() if value is not None}
        self.publish("step", done=done, total=total, stage=stage, **more, **({"previews": images} if images else {}))

    def mark_stored(self) -> None:
        """Record that something of the job is stored, so that the job may be started again as often as at first."""
        self.resources.service.queue.reset_starts(self.job.id)

    def log(self, text: str) -> None:
        """Publish a line of text."""
        self.publish("log", text=hide_paths(text, self.resources.folders.roots))

    def warn(self, message: str) -> None:
        """Keep and publish a warning, once."""
        line = hide_paths(message, self.resources.folders.roots)
        if line in self._warnings or len(self._warnings) >= MAX_WARNINGS:
            return
        self._warnings.append(line)
        self.resources.service.queue.save_warnings(self.job.id, self._warnings)
        self.publish("warning", message=line)

    @contextmanager
    def collect_warnings(self) -> Generator[None]:
        """Within the block, velatura's warnings are those of this job."""
        with redirect_warnings(self.warn):
            yield

    def save_picture(self, picture: Picture, position: int, ending: str) -> StoredPicture:
        """Write a finished picture, and publish that it is there."""
        stored = self.resources.pictures.save(picture, self.job, position, f".{ending}")
        self.report_picture(stored)
        return stored

    def report_picture(self, stored: StoredPicture) -> None:
        """Publish that a picture is stored."""
        url = f"/api/pictures/{stored.id}/file"
        self.publish(
            "picture",
            id=stored.id,
            position=stored.position,
            url=url,
            width=stored.width,
            height=stored.height,
            seed=stored.recipe.get("seed"),
        )
        self.mark_stored()

    def finish(self, result: Mapping[str, object]) -> None:
        """End the job with its result."""
        self.resources.service.queue.save_result(self.job.id, result)
        self._end("done", **result)

    def settle(self, error: BaseException) -> None:
        """End the job with an error, or put it back into the queue if the server ends or the job's worker has ended."""
        if isinstance(error, JobStopped):
            if self.is_cancelled:
                self._end("cancelled")
            else:
                service = self.resources.service
                put_back = service.queue.put_back if service.is_stopping.is_set() else service.queue.requeue
                put_back(self.job.id)
                self.publish("interrupted")
                self.has_ended = True
            return
        if isinstance(error, ApiError):  # a dataset or run that is gone since the job was queued
            detail = error.detail
        elif isinstance(error, VelaturaError):
            detail = describe_error(error, self.resources.folders.roots)
        else:
            LOG.error("job %s (%s) failed", self.job.id, self.job.kind, exc_info=error)
            detail = ErrorDetail(code="internal", message=INTERNAL)
        self.fail(detail)

    def fail(self, detail: ErrorDetail) -> None:
        """End the job with an error that is described already."""
        self._end("failed", detail)

    def _end(self, state: EndState, error: ErrorDetail | None = None, /, **data: object) -> None:
        service = self.resources.service
        service.queue.finish(self.job.id, state, error)
        self.publish(state, **(error.model_dump() if error else data))
        if self.job.kind not in {"train", "resume"}:  # whose losses are drawn as a curve
            service.events.forget_steps(self.job.id)
        service.forget(self.job.id)
        self.has_ended = True


def image_url(image: Image) -> str:
    """Return an image as a data URL of a small WebP."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=0)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
