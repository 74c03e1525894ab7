"""The threads that run jobs: one owns base and device, another one runs what needs neither."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Thread

from pydantic import ValidationError

from velatura.errors import BadFile, VelaturaError
from velatura.server.errors import ErrorDetail
from velatura.server.jobs.context import JobContext, JobResources
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.kinds import CLUSTER_KINDS, JOB_KINDS, Lane

LOG = logging.getLogger("velatura.server")
IDLE_SECONDS = 5.0  # after which a worker looks at the queue without being told
OTHER_VERSION = ErrorDetail(
    code="bad_request", message="the job was queued by another version of velatura: send its request again"
)


class JobWorker(Thread):
    """A thread that takes jobs of one lane from the queue and runs them, until the service stops.

    Args:
        lane: The lane. The worker of "device" opens the base first.
        resources: What jobs share.
        on_failure: Called with the error if the base cannot be opened.
        has_cluster: A cluster runs the jobs of CLUSTER_KINDS.
    """

    def __init__(
        self,
        lane: Lane,
        resources: JobResources,
        on_failure: Callable[[VelaturaError], None] | None = None,
        *,
        has_cluster: bool = False,
    ) -> None:
        super().__init__(name=f"velatura-{lane}", daemon=True)
        self._has_cluster = has_cluster
        # all others, also those of another version in the queue, which fail with the reason
        self._other_than = CLUSTER_KINDS if has_cluster else ()
        self._lane: Lane = lane
        self._resources = resources
        self._on_failure = on_failure

    def run(self) -> None:
        """Open the base if this is the lane of the device, and run job after job."""
        service = self._resources.service
        if self._lane == "device":
            if not self._open_base():
                return
            service.is_ready.set()
        service.is_ready.wait()  # two threads that import torch at once get in each other's way
        while not service.is_stopping.is_set():
            try:
                self._take_job()
            except Exception:  # as of a database that is locked, or of a full disk
                LOG.exception("a job could not be taken, or its end could not be stored")
                service.is_stopping.wait(IDLE_SECONDS)
        if self._lane == "device":
            self._resources.models.close()

    def _take_job(self) -> None:
        """Run the next job, or wait for one a while."""
        service = self._resources.service
        job = service.queue.take(self._lane, other_than=self._other_than)
        if job is not None:
            run_job(job, self._resources)
            return
        with service.queue.changed:
            is_waiting = service.queue.has_waiting(self._lane, other_than=self._other_than)
            if not service.is_stopping.is_set() and not is_waiting:
                service.queue.changed.wait(IDLE_SECONDS)

    def _open_base(self) -> bool:
        try:
            self._resources.models.base()
            if self._has_cluster:
                self._resources.models.record_hashes()  # by which a machine of the cluster is checked
        except VelaturaError as error:
            failure = error
        except Exception as error:  # as of a device without enough memory: a server that waits for ever helps nobody
            LOG.exception("the base cannot be opened")
            failure = BadFile(
                f"the base cannot be opened ({type(error).__name__}): see the log, or give another --base"
            )
        else:
            return True
        if self._on_failure is not None:
            self._on_failure(failure)
        return False


def run_job(job: ServerJob, resources: JobResources) -> None:
    """Run a job that was taken from the queue to its end, whatever happens."""
    context = open_context(job, resources)
    if context is None:
        return
    with context.collect_warnings():
        try:
            JOB_KINDS[job.kind].run(context)
        except BaseException as error:  # noqa: BLE001  # the job settles it, and the worker goes on with the next one
            context.settle(error)


def open_context(job: ServerJob, resources: JobResources) -> JobContext | None:
    """Return the context of a job that was taken from the queue; a job of another version fails, and has none."""
    service = resources.service
    try:
        request = JOB_KINDS[job.kind].request.model_validate(job.request)
    except (VelaturaError, ValidationError, KeyError):
        service.queue.finish(job.id, "failed", OTHER_VERSION)
        service.events.publish(job.id, "failed", **OTHER_VERSION.model_dump())
        return None
    service.events.publish(job.id, "started", starts=job.starts)
    return JobContext(job, request, resources)
