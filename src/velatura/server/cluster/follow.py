"""Follow a job that an actor runs: pass on what is asked of it, and do here what its messages say."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from velatura.compare.cluster import ClusterActor
from velatura.errors import BadFile, WorkerLost, ignore_warnings
from velatura.library import Library
from velatura.server.cluster.messages import ActorMessage, JobAssignment, JobControl, NodeInfo
from velatura.server.errors import INTERNAL, ErrorDetail
from velatura.server.inputs import InputStore
from velatura.server.jobs.context import JobContext
from velatura.server.jobs.job import JobProgress, JobStopped
from velatura.server.jobs.requests import GridRequest, JobRequest, PaintRequest

LOG = logging.getLogger("velatura.server")
STOP_SECONDS = 45  # for which the end of the server waits for the current step of an actor


class JobFollower:
    """A job of this server that an actor runs.

    Args:
        context: The job.
        actor: The actor.
        node: Its machine.
    """

    def __init__(self, context: JobContext, actor: ClusterActor, node: NodeInfo) -> None:
        self._context, self._actor, self._node = context, actor, node
        self._resources = context.resources
        self._stopped_at: float | None = None
        self._has_ended = False  # in the actor
        self._failure: Exception | None = None
        self._handlers: dict[str, Callable[[dict[str, Any]], None]] = {
            "step": self._repeat_step,
            "stored": lambda _: context.mark_stored(),
            "log": lambda data: context.publish("log", **data),
            "warning": lambda data: context.warn(data["message"]),
            "done": self._finish,
            "failed": lambda data: context.fail(self._explain(ErrorDetail(**data))),
            "cancelled": lambda _: context.settle(JobStopped()),
            "interrupted": lambda _: context.settle(JobStopped()),
            "server_log": lambda data: LOG.error("on %s: %s", node.host, data["text"]),
        }

    def follow(self) -> None:
        """Begin the job in the actor, and follow it until it has ended.

        Raises:
            WorkerLost: The actor's process ended, or its step takes too long for the end of the server.
            BadFile: An image that the job begins from is gone.
            Exception: What became of a message cannot be stored here; the job has ended in the actor nevertheless.
        """
        context, service = self._context, self._resources.service
        images = read_images(context.request, self._resources.inputs)
        self._call("begin", JobAssignment(context.job, images, self._resources.pictures.of_job(context.job.id)))
        while not self._has_ended:
            if service.is_stopping.is_set() and self._stopped_at is None:
                self._stopped_at = time.monotonic()
            if self._is_abandoned():
                raise WorkerLost("its step takes too long for the end of the server")
            is_cancelled = context.is_cancelled or self._failure is not None
            control = JobControl(is_cancelled, context.takes_skip(), self._stopped_at is not None)
            for message in self._call("poll", control):
                self._repeat(message)
        if self._failure is not None:
            raise self._failure
        if not context.has_ended:
            context.fail(ErrorDetail(code="internal", message=INTERNAL))

    def _call(self, method: str, *arguments: object) -> Any:
        return self._actor.call(method, *arguments, is_abandoned=self._is_abandoned)

    def _is_abandoned(self) -> bool:
        return self._stopped_at is not None and time.monotonic() - self._stopped_at > STOP_SECONDS

    def _repeat(self, message: ActorMessage) -> None:
        """Do for the job here what happened to it in the actor; after a failure only its end counts."""
        if message.type == "end":
            self._has_ended = True
        if self._failure is not None:
            return
        try:
            if message.file is not None:
                self._context.report_picture(self._resources.pictures.save_file(*message.file))
            elif message.type in self._handlers:
                self._handlers[message.type](dict(message.data))
        except WorkerLost:
            raise
        except Exception as error:  # noqa: BLE001  # the actor has to end the job before the worker settles it
            self._failure = error

    def _repeat_step(self, data: dict[str, Any]) -> None:
        progress = JobProgress(done=data["done"], total=data["total"], stage=data["stage"])
        self._resources.service.queue.save_progress(self._context.job.id, progress)
        self._context.publish("step", **data)

    def _finish(self, data: dict[str, Any]) -> None:
        if "pictures" in data:  # by their ids, which are others here
            made = self._resources.pictures.of_job(self._context.job.id)
            data["pictures"] = [picture.id for picture in made]
        self._context.finish(data)

    def _explain(self, detail: ErrorDetail) -> ErrorDetail:
        """Return an error, with a file that it speaks of and that is here, but not on the actor's machine."""
        message = detail.message.lower()
        with ignore_warnings():
            paths = [entry.path for entry in Library(*self._resources.folders.library).entries()]
        named = [path for path in paths if path.stem.lower() in message]
        missing: list[Path] = self._call("find_missing", named) if named else []
        if not missing:
            return detail
        note = (
            f"{missing[0].name} is in the server's library, and {self._node.host} does not see it: every machine of "
            "the cluster needs the library's folders under the same paths, as on a network drive"
        )
        return detail.model_copy(update={"message": f"{detail.message}; {note}"})


def read_images(request: JobRequest, inputs: InputStore) -> dict[str, bytes]:
    """Return the files of the images that a request refers to, by their references.

    Raises:
        BadFile: One of them is gone.
    """
    if not isinstance(request, PaintRequest | GridRequest):
        return {}
    try:
        return {text: inputs.path(text).read_bytes() for text in (request.image, request.mask) if text is not None}
    except OSError:
        raise BadFile("the image that this job begins from is gone: send it again") from None
