"""What runs in a worker of the cluster: a base that stays open, and one job after another on it."""

from __future__ import annotations

import logging
import os
import socket
import traceback
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread, get_ident

from velatura.server.cluster.messages import ActorMessage, JobAssignment, JobControl, NodeInfo, PictureFile
from velatura.server.cluster.node import NodeFolders, NodeSetup
from velatura.server.inputs import InputStore
from velatura.server.jobs.context import JobResources
from velatura.server.jobs.database import Database
from velatura.server.jobs.events import EventLog, EventType, JobEvent
from velatura.server.jobs.job import ServerJob
from velatura.server.jobs.pictures import PAGE_ENDING, PictureStore
from velatura.server.jobs.queue import JobQueue
from velatura.server.jobs.service import JobService
from velatura.server.jobs.worker import run_job
from velatura.server.models import Models

LOG = logging.getLogger("velatura.server")
POLL_SECONDS = 0.2  # for which the server's question waits for an answer
Messages = SimpleQueue[ActorMessage]


class JobActor:
    """Runs the jobs of a server by the same functions, on its own device, and sends their events to the server.

    Queue, history and images are empty ones in a temporary folder; what counts is written by the server.
    """

    def prepare(self, setup: NodeSetup) -> NodeInfo:
        """Open the base.

        Raises:
            BadSettings: Another version of velatura is installed here.
            BadDataset: A folder of the server is not on this machine, or is another one.
            VelaturaError: The base cannot be opened.
        """
        setup.check()
        self._scratch = TemporaryDirectory(prefix="velatura-")
        scratch = Path(self._scratch.name)
        folders = NodeFolders(setup.folders, scratch)
        database = Database(scratch / "jobs.sqlite")
        self._messages = Messages()
        pictures = PictureStore(database, folders)
        events = ForwardedEvents(database, pictures, self._messages)
        queue = ForwardedQueue(database, self._messages)
        service = JobService(queue, events, 1, on_withdrawn=lambda _job: None)
        models = Models(setup.settings, folders)
        self._resources = JobResources(setup.settings, folders, service, pictures, InputStore(folders), models)
        self._job: ServerJob | None = None
        self._log = ForwardedLog(self._messages)
        LOG.addHandler(self._log)
        return NodeInfo(socket.gethostname(), os.getpid(), str(models.base().device), models.record_hashes())

    def begin(self, assignment: JobAssignment) -> None:
        """Begin a job; `poll` tells how it goes."""
        resources, job = self._resources, assignment.job
        self._job = job
        inputs = [resources.inputs.path(resources.inputs.add(content)) for content in assignment.images.values()]
        for picture in assignment.made:
            resources.pictures.insert(picture)
        Thread(target=self._run, args=(job, inputs), name=f"velatura-{job.kind}", daemon=True).start()

    def _run(self, job: ServerJob, inputs: Sequence[Path]) -> None:
        """Run a job to its end, and remove its files: the server has the pictures, and sends the images again."""
        self._log.thread = get_ident()
        try:
            run_job(job, self._resources)
        except Exception:
            LOG.exception("the end of job %s could not be stored", job.id)
        try:
            self._remove_files(job, inputs)
        except Exception:  # as of a full disk; the server waits for the end nevertheless
            LOG.exception("the files of job %s could not be removed", job.id)
        self._messages.put(ActorMessage("end", {}))

    def _remove_files(self, job: ServerJob, inputs: Sequence[Path]) -> None:
        for path in inputs:
            path.unlink(missing_ok=True)
        for picture in self._resources.pictures.of_job(job.id):
            self._resources.pictures.path(picture).with_suffix(PAGE_ENDING).unlink(missing_ok=True)
            self._resources.pictures.delete(picture)

    def poll(self, control: JobControl) -> list[ActorMessage]:
        """Pass on what is asked of the job, and return what happened to it since the last time.

        Args:
            control: What is asked of the job.

        Returns:
            The messages, none if nothing happens within POLL_SECONDS.
        """
        service = self._resources.service
        assert self._job is not None
        if control.is_cancelled:
            service.mark_cancelled(self._job.id)
        if control.skips:
            service.mark_skipped(self._job.id)
        if control.is_stopping:
            service.is_stopping.set()
        messages = list[ActorMessage]()
        try:
            messages.append(self._messages.get(timeout=POLL_SECONDS))
            while True:
                messages.append(self._messages.get_nowait())
        except Empty:
            return messages

    def find_missing(self, paths: Sequence[Path]) -> list[Path]:
        """Return the files that this machine does not see."""
        return [path for path in paths if not path.exists()]

    def close(self) -> None:
        """Delete the temporary folder."""
        LOG.removeHandler(self._log)
        self._scratch.cleanup()


class ForwardedQueue(JobQueue):
    """Queue of an actor, whose jobs the server stores.

    Args:
        database: The actor's database.
        messages: Where it sends what the server has to store.
    """

    def __init__(self, database: Database, messages: Messages) -> None:
        super().__init__(database)
        self._messages = messages

    def reset_starts(self, job_id: str) -> None:
        """Let the server count the starts of a job from this one."""
        del job_id  # an actor runs one job at a time
        self._messages.put(ActorMessage("stored", {}))


class ForwardedEvents(EventLog):
    """Events of an actor's jobs, which the server stores.

    Args:
        database: The actor's database.
        pictures: The actor's pictures, whose files go with their events.
        messages: Where the events go.
    """

    def __init__(self, database: Database, pictures: PictureStore, messages: Messages) -> None:
        super().__init__(database)
        self._pictures, self._messages = pictures, messages

    def publish(self, job: str, kind: EventType, /, **data: object) -> JobEvent:
        """Send an event, and the file with that of a picture."""
        file = None
        if kind == "picture":
            picture = next(picture for picture in self._pictures.of_job(job) if picture.id == data["id"])
            path = self._pictures.path(picture)
            page = path.with_suffix(PAGE_ENDING)
            file = PictureFile(picture, path.read_bytes(), page.read_bytes() if page.is_file() else None)
        self._messages.put(ActorMessage(kind, data, file))
        return JobEvent(id=0, job=job, type=kind, time=0.0, data=data)


class ForwardedLog(logging.Handler):
    """Lines that a job logs in an actor, which stand in the server's log.

    Attributes:
        thread: The thread that runs the job.
    """

    def __init__(self, messages: Messages) -> None:
        super().__init__()
        self._messages = messages
        self.thread: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line, with the traceback of its error."""
        if record.thread != self.thread:
            return
        lines = [record.getMessage()]
        if record.exc_info and record.exc_info[1]:
            lines += traceback.format_exception(record.exc_info[1])
        self._messages.put(ActorMessage("server_log", {"text": "\n".join(map(str.rstrip, lines))}))
