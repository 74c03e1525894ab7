"""Work on a Ray cluster: jobs, each a task on one device that is run again if its worker dies, and actors that stay.

Pictures, bases and the folder of a study must lie under the same path on every machine, as on a network drive. The
workers write run folders there; all results are written by the process that started the study.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from velatura.base.base import Base
from velatura.base.open_options import OpenOptions
from velatura.errors import (
    BadDataset,
    BadSettings,
    ProcessFailed,
    UnsupportedBase,
    VelaturaError,
    WorkerLost,
    WrongBase,
    redirect_warnings,
    warn,
)
from velatura.formats.open import open_base
from velatura.imports import check_ray_installed
from velatura.tiny import DATA_FOLDER, tiny

MAX_RETRIES = 3  # of a job whose worker died
WAIT_SECONDS = 0.5  # between two looks whether anybody still waits for the answer of an actor
TINY_LOCATION = "tiny"  # wherever velatura is installed on a worker
CLIENT_SCHEME = "ray://"
DEFAULT_PORTS = {"": 6379, CLIENT_SCHEME: 10001}  # Ray's own, by the scheme of an address
CONNECT_SECONDS = 10
LOOPBACK = {"localhost": "127.0.0.1"}
LOCAL_ADDRESS = "local"
AUTO_ADDRESS = "auto"
OWN_ADDRESSES = frozenset({AUTO_ADDRESS, LOCAL_ADDRESS})  # of a connection that the program has already

ClusterJob = TypeVar("ClusterJob")
ClusterResult = TypeVar("ClusterResult")
RunJobs = Callable[[Sequence[ClusterJob]], Iterator[tuple[ClusterJob, ClusterResult]]]  # here or on a cluster


class BaseReference(NamedTuple):
    """Reference by which a worker opens a base.

    Attributes:
        location: Path, hub:OWNER/NAME or "tiny".
        options: The options that it was opened with, paths of its parts among them.
        hashes: Hashes of the base, its text encoders and its autoencoder, which the worker's must have too.
        dtype: The precision that it computes in.
        device: "cpu" if it computes there although this machine has a GPU; else "auto", the worker's GPU if it has one.
        is_offloaded: Only the model that computes is on the GPU.
    """

    location: str
    options: OpenOptions
    hashes: tuple[str | None, ...]
    dtype: str
    device: str
    is_offloaded: bool

    @classmethod
    def from_base(cls, base: Base) -> BaseReference:
        """Return the reference to an open base.

        Raises:
            UnsupportedBase: It was not opened from a file, so that a worker cannot open it.
        """
        if base.opened_from is None:
            raise UnsupportedBase(
                f"{base.name} was not opened from a file, and every worker of a cluster opens the base by its path: "
                "save it, and open that file"
            )
        is_tiny = Path(base.opened_from) == DATA_FOLDER / TINY_LOCATION
        return cls(
            TINY_LOCATION if is_tiny else base.opened_from,
            base.open_options,
            (base.hash, base.text_hash, base.vae_hash),
            str(base.dtype).removeprefix("torch."),
            "cpu" if base.device.type == "cpu" and torch.cuda.is_available() else "auto",
            base.is_offloaded,
        )

    def open(self) -> Base:
        """Open the base in a worker.

        Raises:
            WrongBase: It is another one on this machine.
        """
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device, **self.options.model_dump()}
        if self.location != TINY_LOCATION:
            base = open_base(self.location, offload=self.is_offloaded, **options)
        elif self.options == OpenOptions():
            base = tiny(self.dtype, self.device)
        else:
            base = open_base(DATA_FOLDER / TINY_LOCATION, offload=self.is_offloaded, **options)
        found = base.hash, base.text_hash, base.vae_hash
        if found != self.hashes:
            raise WrongBase(
                f"{self.location} is another base on {socket.gethostname()} ({found[0]}, not {self.hashes[0]}): every "
                "machine of the cluster needs the same files under the same path"
            )
        return base


@contextmanager
def connect(address: str) -> Generator[Cluster]:
    """Connect to a Ray cluster, and disconnect at the end; a connection that the program has already stays open.

    Args:
        address: "auto" for the cluster that this machine belongs to, HOST:PORT, ray://HOST:10001, or "local" for a
            cluster of this machine alone, which ends with the block.

    Raises:
        BadSettings: Ray is not installed, nothing answers at the address, or the program is connected to another one.
    """
    check_ray_installed()
    client: Any = import_module("ray")
    was_connected = client.is_initialized()
    if was_connected:
        connected_to = client.get_runtime_context().gcs_address
        if address not in OWN_ADDRESSES and not _is_same_cluster(address, connected_to):
            raise BadSettings(
                f"this program is connected to the Ray cluster at {connected_to}, not {address}: give auto to use it, "
                "or call ray.shutdown() first"
            )
    else:
        _initialize(client, address)
    try:
        yield Cluster(client, needs_gpu=client.cluster_resources().get("GPU", 0) > 0)
    finally:
        if not was_connected:
            client.shutdown()


def _is_same_cluster(address: str, connected_to: str) -> bool:
    """Return True if an address means the cluster at HOST:PORT.

    A ray:// address names the port of Ray's own server for clients, so its host alone is compared.
    """
    host, _, port = address.removeprefix(CLIENT_SCHEME).partition(":")
    own_host, _, own_port = connected_to.partition(":")
    same_host = LOOPBACK.get(host, host) == LOOPBACK.get(own_host, own_host)
    return same_host and (address.startswith(CLIENT_SCHEME) or port in {"", own_port})


def _check_answers(address: str) -> None:
    """Refuse an address at which nothing listens: Ray itself tries for half an hour and longer.

    Raises:
        BadSettings: The port cannot be reached, or the address is none.
    """
    scheme = CLIENT_SCHEME if address.startswith(CLIENT_SCHEME) else ""
    host, _, port = address.removeprefix(scheme).rpartition(":")
    if not port.isdecimal():
        host, port = address.removeprefix(scheme), str(DEFAULT_PORTS[scheme])
    if not host:
        raise _no_answer(address, "it has no host")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_answer(address, getattr(error, "strerror", None) or str(error)) from None


def _no_answer(address: str, reason: str) -> BadSettings:
    return BadSettings(
        f"no Ray cluster answers at {address or 'an empty address'} ({reason}); start one with `ray start --head`, set "
        "RAY_AUTH_MODE=token if it asks for its token, or give local"
    )


def _initialize(client: Any, address: str) -> None:
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "configure_logging": False}
    if address == LOCAL_ADDRESS:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers otherwise
        options["include_dashboard"] = False  # it runs what anybody sends who reaches its port
    else:
        named = os.environ.get("RAY_ADDRESS", AUTO_ADDRESS) if address == AUTO_ADDRESS else address
        if named not in OWN_ADDRESSES:
            _check_answers(named)
    try:
        client.init(**options)
    except (ConnectionError, RuntimeError, ValueError, client.exceptions.RayError) as error:
        raise _no_answer(address, _first_line(error)) from None


class ClusterActor:
    """An object that lives in a worker of the cluster, and has its device until it is ended.

    Args:
        client: The module ray.
        handle: Ray's handle of the actor.
    """

    def __init__(self, client: Any, handle: Any) -> None:
        self._client, self._handle = client, handle

    def call(self, method: str, *arguments: object, is_abandoned: Callable[[], bool] = lambda: False) -> Any:
        """Call a method there, and return what it returns.

        Args:
            method: Its name.
            arguments: Its arguments.
            is_abandoned: Asked while the answer takes long: True if nobody waits for it any more.

        Raises:
            WorkerLost: The worker ended, the call was abandoned, or Ray cannot reach the cluster.
            VelaturaError: What the method raised.
            ProcessFailed: The method raised another error.
        """
        exceptions = self._client.exceptions
        try:
            reference = getattr(self._handle, method).remote(*arguments)
            while not self._client.wait([reference], timeout=WAIT_SECONDS)[0]:
                if is_abandoned():
                    raise WorkerLost("nobody waits for its answer any more")
            return self._client.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, VelaturaError):
                raise error.cause from None
            raise ProcessFailed(
                f"a worker of the cluster failed ({_last_line(error)}): see Ray's log on its machine"
            ) from error
        except (VelaturaError, WorkerLost):
            raise
        except Exception as error:  # noqa: BLE001  # Ray's client raises plain Exception for a lost connection
            raise WorkerLost(_first_line(error) or type(error).__name__) from None

    def end(self) -> None:
        """End the worker's process at once."""
        self._client.kill(self._handle)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[-1]


class Cluster:
    """An open connection to a Ray cluster.

    Args:
        client: The module ray.
        needs_gpu: Every job takes a GPU; otherwise it takes a CPU.
    """

    def __init__(self, client: Any, *, needs_gpu: bool) -> None:
        self._client = client
        self._options = {"num_gpus": 1} if needs_gpu else {"num_cpus": 1}

    @property
    def slots(self) -> int:
        """How many jobs run side by side."""
        resource = "GPU" if "num_gpus" in self._options else "CPU"
        return max(1, int(self._client.cluster_resources().get(resource, 1)))

    def without_gpus(self) -> Cluster:
        """Return the same connection, on which every job and actor takes a CPU."""
        return Cluster(self._client, needs_gpu=False)

    def start_actor(self, actor_class: type) -> ClusterActor:
        """Start an actor on a device that is free, or becomes free.

        Args:
            actor_class: A class of a module, made without arguments.
        """
        return ClusterActor(self._client, self._client.remote(**self._options)(actor_class).remote())

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
            folders: Folders and files that every worker must see.

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
                        raise ProcessFailed(
                            f"a job failed on {MAX_RETRIES + 1} workers: {_first_line(error)}"
                        ) from None
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
    check_on_this_machine(folders)
    messages: list[str] = []
    with redirect_warnings(messages.append):
        result = function(_open_reference(reference), job)
    return result, list(dict.fromkeys(messages))


def check_on_this_machine(paths: Iterable[str | Path]) -> None:
    """Refuse files and folders that a worker does not see.

    Raises:
        BadDataset: One of them is not on this machine.
    """
    for path in paths:
        if not Path(path).exists():
            raise BadDataset(
                f"{path} is not on {socket.gethostname()}: on every machine of the cluster folders and files must be "
                "under the same path, as on a network drive"
            )


@lru_cache(maxsize=1)
def _open_reference(reference: BaseReference) -> Base:
    """Open a base once in each worker."""
    return reference.open()
