"""The threads that hand jobs to the actors of a cluster: each has one actor, and follows one job at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from threading import Thread

from velatura.compare.cluster import Cluster, ClusterActor
from velatura.errors import ProcessFailed, VelaturaError, WorkerLost, WrongBase
from velatura.server.cluster.actor import JobActor
from velatura.server.cluster.follow import JobFollower
from velatura.server.cluster.messages import NodeInfo, WorkerInfo
from velatura.server.cluster.node import NodeSetup
from velatura.server.errors import ErrorDetail
from velatura.server.jobs.context import JobContext, JobResources
from velatura.server.jobs.job import JobStopped, ServerJob
from velatura.server.jobs.kinds import CLUSTER_KINDS
from velatura.server.jobs.queue import MAX_STARTS
from velatura.server.jobs.worker import IDLE_SECONDS, open_context

LOG = logging.getLogger("velatura.server")
MAX_LOST_STARTS = 3  # of actors that end before their base is open
RESTART_SECONDS = 2.0  # between two such starts, and as much more after each
LOST_AGAIN = ErrorDetail(
    code="interrupted",
    message=f"{MAX_STARTS} workers ended while this job ran and had nothing stored: it may need less memory",
)


class ClusterWorker(Thread):
    """A thread with an actor on one device, which takes jobs from the queue until the service stops.

    Args:
        cluster: The connection.
        setup: What actors are set up with.
        resources: What jobs share.
        on_refusal: Called with this worker and the error if its actor cannot serve; the thread ends then.

    Attributes:
        info: What it does at the moment.
    """

    def __init__(
        self,
        cluster: Cluster,
        setup: NodeSetup,
        resources: JobResources,
        on_refusal: Callable[[ClusterWorker, VelaturaError], None],
    ) -> None:
        super().__init__(name="velatura-cluster", daemon=True)
        self._cluster, self._setup, self._resources, self._on_refusal = cluster, setup, resources, on_refusal
        self._service = resources.service
        self._lost_starts = 0
        self.info = WorkerInfo()

    def run(self) -> None:
        """Start an actor, run job after job on it, and start another one where it is lost."""
        while not self._service.is_stopping.is_set():
            self.info = WorkerInfo()
            try:
                with self._open_actor() as actor:
                    self._take_jobs(actor, self._prepare(actor))
            except WorkerLost as lost:
                if not self._service.is_stopping.is_set():
                    LOG.warning("a worker of the cluster ended (%s): another one is started", lost)
                self._service.is_stopping.wait(RESTART_SECONDS * self._lost_starts)
            except VelaturaError as error:
                self._on_refusal(self, error)
                return

    @contextmanager
    def _open_actor(self) -> Generator[ClusterActor]:
        """Start an actor, and end its process behind the block.

        Raises:
            WorkerLost: It cannot be started.
            ProcessFailed: It could not be started again and again.
        """
        try:
            actor = self._cluster.start_actor(JobActor)
        except Exception as error:  # Ray's client raises plain Exception for a lost connection
            raise self._lost_start(WorkerLost(str(error).partition("\n")[0] or type(error).__name__)) from error
        try:
            yield actor
        finally:
            with suppress(Exception):  # as of a connection that is lost, and the actor with it
                actor.end()

    def _lost_start(self, lost: WorkerLost) -> WorkerLost | ProcessFailed:
        """Count an actor that ended before its base was open; return the error, another one for the last of several."""
        self._lost_starts += 1
        if self._lost_starts < MAX_LOST_STARTS or self._service.is_stopping.is_set():
            return lost
        return ProcessFailed(
            f"{MAX_LOST_STARTS} workers of the cluster ended before their base was open ({lost}): Ray must be running, "
            "and every machine needs velatura[serve,cluster] of this version, and memory for the base"
        )

    def _prepare(self, actor: ClusterActor) -> NodeInfo:
        """Let an actor open the base.

        Raises:
            WorkerLost: Its process ended, or the server ends.
            ProcessFailed: Its process ended again and again.
            WrongBase: Its base is another one.
            VelaturaError: Its machine cannot serve.
        """
        try:
            node: NodeInfo = actor.call("prepare", self._setup, is_abandoned=self._service.is_stopping.is_set)
        except WorkerLost as lost:
            raise self._lost_start(lost) from None
        self._service.is_ready.wait()  # the base is open here too
        if self._service.is_stopping.is_set():
            raise WorkerLost("the server ends")
        expected = self._resources.models.own_hashes
        if node.hashes != expected:
            raise WrongBase(
                f"{self._resources.models.base_name} is another base on {node.host} ({node.hashes[0]}, not "
                f"{expected[0]}): every machine of the cluster needs the same files under the same path"
            )
        self._lost_starts = 0
        return node

    def _take_jobs(self, actor: ClusterActor, node: NodeInfo) -> None:
        """Run job after job until the service stops; where one cannot be stored, wait a little and go on.

        Raises:
            WorkerLost: The actor's process ended; its job is queued again.
        """
        while not self._service.is_stopping.is_set():
            self.info = WorkerInfo(host=node.host, process=node.process, device=node.device)
            try:
                self._take_job(actor, node)
            except WorkerLost:
                raise
            except Exception:  # as of a database that is locked, or of a full disk
                LOG.exception("a job could not be taken for %s, or its end could not be stored", node.host)
                self._service.is_stopping.wait(IDLE_SECONDS)
        actor.call("close", is_abandoned=lambda: True)

    def _take_job(self, actor: ClusterActor, node: NodeInfo) -> None:
        """Run the next job, or wait for one a while."""
        queue = self._service.queue
        job = queue.take("device", CLUSTER_KINDS)
        if job is not None:
            self.info = self.info.model_copy(update={"job": job.id})
            self._run_job(actor, node, job)
            return
        with queue.changed:
            if not self._service.is_stopping.is_set() and not queue.has_waiting("device", CLUSTER_KINDS):
                queue.changed.wait(IDLE_SECONDS)

    def _run_job(self, actor: ClusterActor, node: NodeInfo, job: ServerJob) -> None:
        """Run a job to its end, or put it back into the queue."""
        context = open_context(job, self._resources)
        if context is None:
            return
        try:
            JobFollower(context, actor, node).follow()
        except WorkerLost:
            self._requeue(context, node)
            raise
        except Exception as error:  # noqa: BLE001  # the job settles it, and the worker goes on with the next one
            context.settle(error)

    def _requeue(self, context: JobContext, node: NodeInfo) -> None:
        """Put a job whose actor is lost back into the queue; one that has lost too many fails."""
        is_wanted = not context.is_cancelled and not self._service.is_stopping.is_set()
        if is_wanted:
            job = self._service.get(context.job.id)
            if job.starts >= MAX_STARTS:
                context.fail(LOST_AGAIN)
                return
            context.warn(f"a worker on {node.host} ended while this job ran: the job went on with another one")
        context.settle(JobStopped())
