"""All workers of a server on a cluster: one for each device that the cluster has at the start."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock

from velatura.compare.cluster import Cluster
from velatura.errors import VelaturaError
from velatura.server.cluster.node import NodeSetup
from velatura.server.cluster.worker import ClusterWorker
from velatura.server.jobs.context import JobResources

LOG = logging.getLogger("velatura.server")


class ClusterPool:
    """Workers that share the jobs for a cluster.

    Args:
        cluster: The connection.
        resources: What jobs share.
        on_failure: Called with the error of the last worker if none can serve.

    Attributes:
        workers: The workers that serve, or try to.
    """

    def __init__(self, cluster: Cluster, resources: JobResources, on_failure: Callable[[VelaturaError], None]) -> None:
        setup = NodeSetup.of_server(resources.settings, resources.folders)
        self._on_failure = on_failure
        self._lock = Lock()
        if setup.settings.device == "cpu":
            cluster = cluster.without_gpus()
        self.workers = [ClusterWorker(cluster, setup, resources, self._refuse) for _ in range(cluster.slots)]

    def _refuse(self, worker: ClusterWorker, error: VelaturaError) -> None:
        """Go on without a worker whose machine cannot serve; without any of them the server ends."""
        with self._lock:
            self.workers.remove(worker)
            is_last = not self.workers
        if is_last:
            self._on_failure(error)
        else:
            LOG.warning("a worker of the cluster is left out: %s", error)
