"""Trials on a Ray cluster: each is a task on one device, and the trial of a worker that dies is resumed on another one.

Pictures, bases and the folder of the study must lie under the same path on every machine, as on a network drive. The
workers write run folders there; all results are written by the process that started the study.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from velatura.base.base import Base
from velatura.base.open_options import OpenOptions
from velatura.errors import (
    BadDataset,
    BadSettings,
    ProcessFailed,
    VelaturaError,
    WrongBase,
    redirect_warnings,
    warn,
)
from velatura.formats.open import open_base
from velatura.tiny import tiny
from velatura.training.run.recorded_base import base_location

MAX_RETRIES = 3  # of a trial whose worker died
INSTALL_HINT = 'Ray is not installed: pip install "velatura[cluster]"'

ClusterJob = TypeVar("ClusterJob")
ClusterResult = TypeVar("ClusterResult")


class BaseReference(NamedTuple):
    """How a worker opens the base that the study runs on.

    Attributes:
        location: Path, hub:OWNER/NAME or "tiny".
        options: The options that it was opened with, paths of its parts among them.
        hashes: Hashes of the base, its text encoders and its autoencoder, which the worker's must have too.
    """

    location: str
    options: OpenOptions
    hashes: tuple[str | None, ...]

    @classmethod
    def from_base(cls, base: Base) -> BaseReference:
        """Return the reference to an open base."""
        hashes = base.hash, base.text_hash, base.vae_hash
        return cls(base_location(base.opened_from, base.name, base.open_options), base.open_options, hashes)


def check_ray_installed() -> None:
    """Refuse a cluster where Ray is not installed, before anything is loaded.

    Raises:
        BadSettings: It is not.
    """
    if find_spec("ray") is None:
        raise BadSettings(INSTALL_HINT)


@contextmanager
def connect(address: str) -> Generator[Cluster]:
    """Connect to a Ray cluster, and disconnect at the end.

    Args:
        address: "auto" for the cluster that this machine belongs to, HOST:PORT, ray://HOST:10001, or "local" for a
            cluster of this machine alone, which ends with the block.

    Raises:
        BadSettings: Ray is not installed, or nothing answers at the address.
    """
    check_ray_installed()
    client: Any = import_module("ray")
    try:
        client.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise BadSettings(
            f"no Ray cluster answers at {address} ({reason}): start one with `ray start --head`, or give local"
        ) from None
    try:
        yield Cluster(client, needs_gpu=client.cluster_resources().get("GPU", 0) > 0)
    finally:
        client.shutdown()


class Cluster:
    """An open connection to a Ray cluster.

    Args:
        client: The module ray.
        needs_gpu: Every trial takes a GPU; otherwise it takes a CPU.
    """

    def __init__(self, client: Any, *, needs_gpu: bool) -> None:
        self._client = client
        self._options = {"num_gpus": 1} if needs_gpu else {"num_cpus": 1}

    def run(
        self,
        function: Callable[[Base, ClusterJob], ClusterResult],
        base: BaseReference,
        jobs: Sequence[ClusterJob],
        folders: Sequence[Path],
    ) -> Iterator[tuple[ClusterJob, ClusterResult]]:
        """Run jobs on the cluster, and yield each with its result as soon as it is done.

        Args:
            function: Runs a job on a base; a function of a module, which goes on where an earlier try was.
            base: The base.
            jobs: The jobs.
            folders: Folders that every worker must see.

        Raises:
            ProcessFailed: The workers of a job died again and again.
            VelaturaError: What a job raised.
        """
        exceptions = self._client.exceptions
        task = self._client.remote(**self._options, max_retries=MAX_RETRIES)(run_on_worker)
        waiting = {
            task.remote(function, base, job, [str(folder.absolute()) for folder in folders]): job for job in jobs
        }
        try:
            while waiting:
                done, _ = self._client.wait([*waiting], num_returns=1)
                for reference in done:
                    job = waiting.pop(reference)
                    try:
                        result, messages = self._client.get(reference)
                    except exceptions.RayTaskError as error:
                        if isinstance(error.cause, VelaturaError):
                            raise error.cause from None
                        raise
                    except exceptions.RayError as error:
                        reason = (str(error).splitlines() or [""])[0]
                        raise ProcessFailed(f"a trial failed on {MAX_RETRIES + 1} workers: {reason}") from None
                    for message in messages:
                        warn(message)
                    yield job, result
        finally:
            for reference in waiting:
                self._client.cancel(reference, force=True)


def run_on_worker(
    function: Callable[[Base, Any], Any], reference: BaseReference, job: Any, folders: Sequence[str]
) -> tuple[Any, list[str]]:
    """Run a job in a worker; return its result and the warnings that it gave.

    Raises:
        BadDataset: A folder is not on this machine.
        WrongBase: The base is another one here.
        VelaturaError: What the job raised.
    """
    for folder in folders:
        if not Path(folder).is_dir():
            raise BadDataset(
                f"{folder} is not on {socket.gethostname()}: on every machine of the cluster pictures and the study's "
                "folder must lie under the same path, as on a network drive"
            )
    messages: list[str] = []
    with redirect_warnings(messages.append):
        result = function(_open_reference(reference), job)
    return result, list(dict.fromkeys(messages))


@lru_cache(maxsize=1)
def _open_reference(reference: BaseReference) -> Base:
    """Open a base once in each worker."""
    is_tiny = reference.location == "tiny"
    base = tiny() if is_tiny else open_base(reference.location, **reference.options.model_dump())
    found = base.hash, base.text_hash, base.vae_hash
    if found != reference.hashes:
        raise WrongBase(
            f"{reference.location} is another base on {socket.gethostname()} ({found[0]}, not {reference.hashes[0]}): "
            "every machine of the cluster needs the same files under the same path"
        )
    return base
