"""What routes do with jobs: submit, look, cancel, skip, wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from threading import Event, Lock

from velatura.server.errors import ApiError, not_found
from velatura.server.jobs.events import LAST_EVENTS, EventLog
from velatura.server.jobs.job import JobState, ServerJob
from velatura.server.jobs.queue import JobQueue
from velatura.server.jobs.requests import JobRequest

POLL_SECONDS = 0.05  # between two looks whether the base is open


class JobService:
    """Jobs as routes see them.

    Args:
        queue: The queue.
        events: The events.
        max_queued: The most jobs that may wait.
        on_withdrawn: Called with a job that was cancelled before it began.
    """

    def __init__(
        self, queue: JobQueue, events: EventLog, max_queued: int, on_withdrawn: Callable[[ServerJob], None]
    ) -> None:
        self.queue, self.events = queue, events
        self.is_stopping = Event()
        self.is_ready = Event()  # the base is open, and torch imported
        self._max_queued, self._on_withdrawn = max_queued, on_withdrawn
        self._lock = Lock()
        self._cancelled: set[str] = set()
        self._skipped: set[str] = set()

    def submit(self, kind: str, lane: str, request: JobRequest, warnings: Sequence[str] = ()) -> ServerJob:
        """Put a request into the queue.

        Args:
            kind: The kind of job.
            lane: The worker that runs it.
            request: The request, with nothing left to chance.
            warnings: Warnings that the job begins with.

        Raises:
            ApiError: Too many jobs wait.
        """
        self.check_room()
        fields = {"kind": kind, **request.model_dump(mode="json", exclude_defaults=True)}
        job = self.queue.add(kind, lane, fields, request.priority, warnings)
        self.events.publish(job.id, "queued", kind=kind, number=job.number)
        self.queue.notify()
        return job

    def check_room(self) -> None:
        """Refuse a further job if too many wait.

        Raises:
            ApiError: Too many jobs wait.
        """
        waiting = self.queue.count().get("queued", 0)
        if waiting >= self._max_queued:
            raise ApiError(429, "too_many_jobs", f"{waiting} jobs wait already: try again when some are done")

    def get(self, job_id: str) -> ServerJob:
        """Return a job.

        Raises:
            ApiError: There is none with this id.
        """
        job = self.queue.get(job_id)
        if job is None:
            raise not_found("job")
        return job

    def cancel(self, job_id: str) -> ServerJob:
        """Cancel a job: a waiting one at once, a running one after its current step. A job that is over stays as it is.

        Raises:
            ApiError: There is none with this id.
        """
        before = self.get(job_id)
        self.mark_cancelled(job_id)
        state = self.queue.cancel(job_id)
        if state != "running":
            self.forget(job_id)
        if before.state == "queued" and state == "cancelled":
            self._on_withdrawn(before)
            self.events.publish(job_id, "cancelled")
        return self.get(job_id)

    def skip(self, job_id: str) -> ServerJob:
        """Leave out the pictures that a running job paints at this moment, and go on with its next ones.

        Raises:
            ApiError: There is none with this id, or it is not painting.
        """
        job = self.get(job_id)
        if job.state != "running" or job.kind != "paint":
            raise ApiError(409, "not_painting", f"the job is {job.state}: only a job that paints can skip a picture")
        self.mark_skipped(job_id)
        return job

    def mark_cancelled(self, job_id: str) -> None:
        """Let a running job end after its current step."""
        with self._lock:
            self._cancelled.add(job_id)

    def mark_skipped(self, job_id: str) -> None:
        """Let a running job leave out the pictures that it paints at this moment."""
        with self._lock:
            self._skipped.add(job_id)

    def is_cancelled(self, job_id: str) -> bool:
        """Return True if a running job is to end."""
        return job_id in self._cancelled

    def takes_skip(self, job_id: str) -> bool:
        """Return True once after each `skip`."""
        with self._lock:
            if job_id not in self._skipped:
                return False
            self._skipped.remove(job_id)
            return True

    def forget(self, job_id: str) -> None:
        """Forget what was asked of a job, which has ended."""
        with self._lock:
            self._cancelled.discard(job_id)
            self._skipped.discard(job_id)

    async def wait_until_ready(self, seconds: float) -> None:
        """Wait until the base is open, or the server ends, without a thread of its own.

        Args:
            seconds: How long.

        Raises:
            ApiError: It takes longer.
        """
        end = time.monotonic() + seconds
        while not self.is_ready.is_set():
            if time.monotonic() > end:
                raise ApiError(503, "opening", "the base is still being opened: send the request again later")
            await asyncio.sleep(POLL_SECONDS)

    async def wait(self, job_id: str) -> ServerJob:
        """Return a job once it is over, or as it is when the server ends.

        Raises:
            ApiError: There is none with this id.
        """
        last_id = self.events.last_id  # before the job is read, so that nothing is missed
        job = self.get(job_id)
        if not job.has_ended:
            async for event in self.events.follow(last_id, job_id):
                if event.type in LAST_EVENTS:
                    break
        return self.get(job_id)

    def recover(self) -> None:
        """Settle the jobs that ran when the server ended last time."""
        requeued, ended = self.queue.recover()
        for job in requeued:
            self.events.publish(job.id, "interrupted", starts=job.starts)
        for job in ended:
            _publish_end(self.events, job)


def _publish_end(events: EventLog, job: ServerJob) -> None:
    state: JobState = job.state
    if state == "failed" and job.error is not None:
        events.publish(job.id, "failed", **job.error.model_dump())
    elif state == "cancelled":
        events.publish(job.id, "cancelled")
