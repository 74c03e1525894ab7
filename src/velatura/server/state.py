"""All that the routes of the server share, from start to end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from filelock import FileLock, Timeout

from velatura.errors import AlreadyExists, VelaturaError
from velatura.server.folders import Folders
from velatura.server.inputs import InputStore
from velatura.server.jobs.context import JobResources
from velatura.server.jobs.database import Database
from velatura.server.jobs.events import EventLog
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.kinds import submit
from velatura.server.jobs.pictures import PictureStore
from velatura.server.jobs.prepare import PreparationContext
from velatura.server.jobs.queue import JobQueue
from velatura.server.jobs.requests import JobRequest
from velatura.server.jobs.service import JobService
from velatura.server.jobs.worker import JobWorker
from velatura.server.library_view import LibraryView
from velatura.server.limits import RequestTurns
from velatura.server.models import Models
from velatura.server.options import OptionStore
from velatura.server.settings import ServerSettings

if TYPE_CHECKING:
    from velatura.compare.cluster import Cluster
    from velatura.server.cluster.pool import ClusterPool

DATABASE_FILE, LOCK_FILE = "velatura.sqlite", ".velatura.lock"
KEPT_DAYS = 30  # of jobs that are over and their events
DAY_SECONDS = 86400
MAX_WAITING_UPSCALES = 32  # each keeps its images in memory
READY_SECONDS = 300.0  # for which a request waits until the base is open
STOP_SECONDS = 60  # for which the end of the server waits for the current steps


class ServerState:
    """Folders, queue, history, models and workers of one server.

    Args:
        settings: The server's settings.
        cluster: The connection to a Ray cluster that runs the jobs of CLUSTER_KINDS; None: they run here.

    Attributes:
        settings: The server's settings.
        folders: Its folders.
        library: Finds files for routes; the worker has its own.
        jobs: Queue and events.
        pictures: The history of pictures.
        inputs: The images of requests.
        options: Values that a client may set, by name.
        upscaling: Turns of the requests that upscale images, so that their memory stays bounded.
        tasks: The ids of jobs by the names that clients gave them.
        failure: Why the base could not be opened, if it could not.
        on_failure: Called then.
        pool: The workers on the cluster, if there is one.

    Raises:
        AlreadyExists: Another server uses the output folder.
        BadFile: A folder of the library does not exist, or the database cannot be used.
    """

    def __init__(self, settings: ServerSettings, cluster: Cluster | None = None) -> None:
        self.settings = settings
        self.folders = Folders(settings)
        self.library = LibraryView(self.folders)
        # The thread that stops the server may be another one than the one that made it
        self._lock = FileLock(self.folders.out / LOCK_FILE, thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise AlreadyExists(
                f"another server uses {self.folders.out}: stop it, or give this one another folder with --out"
            ) from None
        self.database = Database(self.folders.out / DATABASE_FILE)
        queue, events = JobQueue(self.database), EventLog(self.database)
        self.jobs = JobService(queue, events, settings.max_queued_jobs, self._release)
        self.pictures = PictureStore(self.database, self.folders)
        self.inputs, self.options = InputStore(self.folders), OptionStore(self.database)
        self.models = Models(settings, self.folders)
        self.upscaling = RequestTurns(MAX_WAITING_UPSCALES)
        self.started = time.time()
        self.tasks: dict[str, tuple[str, ...]] = {}
        self.failure: VelaturaError | None = None
        self.on_failure: Callable[[], None] | None = None
        self.pool: ClusterPool | None = None
        self._cluster = cluster
        self._workers: list[Thread] = []

    def start(self) -> None:
        """Settle what the last run left, and start the workers; the first one opens the base."""
        oldest = time.time() - KEPT_DAYS * DAY_SECONDS
        self.jobs.queue.forget(oldest)
        self.inputs.forget(oldest, self.jobs.queue.open_requests())
        self.jobs.recover()
        resources = JobResources(self.settings, self.folders, self.jobs, self.pictures, self.inputs, self.models)
        has_cluster = self._cluster is not None
        self._workers = [
            JobWorker("device", resources, self.fail, has_cluster=has_cluster),
            JobWorker("files", resources),
        ]
        if self._cluster is not None:
            from velatura.server.cluster.pool import ClusterPool

            self.pool = ClusterPool(self._cluster, resources, self.fail)
            self._workers += self.pool.workers
        for worker in self._workers:
            worker.start()

    def fail(self, error: VelaturaError) -> None:
        """Remember why the base could not be opened, or the cluster not be used, and end: nothing can be painted."""
        self.failure = error
        self.begin_stop()
        if self.on_failure is not None:
            self.on_failure()

    def submit(self, request: JobRequest, warnings: Sequence[str] = ()) -> ServerJob:
        """Settle a request and put it into the queue; see `velatura.server.jobs.kinds.submit`."""
        return submit(request, self.jobs, PreparationContext(self.settings, self.folders, self.inputs), warnings)

    def _release(self, job: ServerJob) -> None:
        """Delete the empty folder that was reserved for a training that never began."""
        if job.kind == "train":
            with suppress(OSError):  # it has files: a training that the last run of the server began
                (self.folders.runs / str(job.request["run"])).rmdir()

    def begin_stop(self) -> None:
        """Ask the workers to end after their current step, and let all who follow events go; any thread may call it."""
        self.jobs.is_stopping.set()
        self.jobs.is_ready.set()  # nobody waits any more
        self.jobs.queue.notify()
        self.jobs.events.close()

    def stop(self) -> None:
        """End the workers, which put their jobs back into the queue, and close the database.

        If a worker does not end in time, database and folder stay its own until the process ends.
        """
        self.begin_stop()
        for worker in self._workers:
            worker.join(STOP_SECONDS)
        if not any(worker.is_alive() for worker in self._workers):
            self.database.close()
            self._lock.release()


def get_state(request: Request) -> ServerState:
    """Return what the routes share."""
    state: ServerState = request.app.state.velatura
    return state


async def get_ready_state(request: Request) -> ServerState:
    """Return what the routes share once the base is open, for routes that import torch or ask the base.

    They wait here, in the event loop: a wait in the route itself would keep one of the few threads from other requests.

    Raises:
        ApiError: The base is not open after READY_SECONDS.
    """
    state = get_state(request)
    await state.jobs.wait_until_ready(READY_SECONDS)
    return state


State = Annotated[ServerState, Depends(get_state)]
ReadyState = Annotated[ServerState, Depends(get_ready_state)]
