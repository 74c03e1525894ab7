"""Training in several processes: data parallelism on accelerate.

Every process runs the same training loop on its own rows of every batch, and gradients are averaged before every
optimizer step. The main process (rank 0) alone writes files, makes previews and prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from velatura.errors import ProcessFailed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PROCESS_TIMEOUT = timedelta(days=1)  # how long a process waits for another one, which may be making previews
GPU_BACKEND = "cuda:nccl,cpu:gloo"  # objects travel by gloo, which notices a lost process at once; NCCL would hang

ProcessValue = TypeVar("ProcessValue")


def process_count() -> int:
    """Return the number of processes that were launched together with this one, itself included."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return True if this process alone writes files: the first of several, or the only one."""
    return process_count() == 1 or os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Processes:
    """All processes of one training, and the rank of this one among them.

    All processes call the methods below in the same order. Every exchange also carries the failure of a process that
    is about to end (see `fail_together`), so none of them waits for a process that has failed.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Connect to the other processes that accelerate, torchrun or `--processes` launched.

        Args:
            device: Where the base is; gradients on a GPU are exchanged by NCCL, all else by gloo.

        Returns:
            All processes, or this one alone if it was launched alone.
        """
        if process_count() == 1:
            return cls()
        on_cpu = device.type == "cpu"
        options: dict[str, object] = {} if on_cpu else {"backend": GPU_BACKEND}
        state = _accelerate().PartialState(cpu=on_cpu, timeout=PROCESS_TIMEOUT, **options)
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and makes decisions."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Return which rows of the whole batch, of count x batch_size pictures, this process trains on."""
        return slice(self.rank * batch_size, (self.rank + 1) * batch_size)

    def gather(self, value: ProcessValue) -> list[ProcessValue]:
        """Return the values of all processes by rank.

        Raises:
            ProcessFailed: Another process failed or is gone.
        """
        return [value] if self.count == 1 else self._exchange(value, "")

    def run_on_main(self, function: Callable[[], ProcessValue]) -> ProcessValue:
        """Call a function in the main process and return its result in every process.

        Args:
            function: Reads or writes files, or decides; its result can be pickled, and its tensors are on the CPU.
        """
        values = [function() if self.is_main else None]
        if self.count > 1:
            self.gather(None)  # raises if the main process failed
            with _report_lost_process():
                _accelerate().utils.broadcast_object_list(values)
        return cast("ProcessValue", values[0])

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes."""
        values = self.gather(value)
        return sum(values) / len(values)

    def average_gradients(self, weights: Sequence[Tensor]) -> None:
        """Replace every gradient by its mean over all processes.

        DistributedDataParallel cannot do this: it wraps a module's forward, and an overlay acts through hooks on the
        base. A weight without a gradient in some processes counts as zero there; one without any keeps none.
        """
        if self.count == 1:
            return
        import torch

        flags_by_process = self.gather([weight.grad is not None for weight in weights])
        for weight, flags in zip(weights, zip(*flags_by_process, strict=True), strict=True):
            if any(flags):
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                with _report_lost_process():
                    weight.grad = _accelerate().utils.reduce(gradient.detach(), "mean")

    def stop_together(self, signal_name: str) -> None:
        """Raise KeyboardInterrupt in all processes if one of them received a signal.

        Args:
            signal_name: The signal that this process received, as "SIGINT"; empty if there was none.
        """
        received = [name for name in self.gather(signal_name) if name]
        if received:
            raise KeyboardInterrupt(received[0])

    @contextmanager
    def fail_together(self) -> Generator[None]:
        """End all processes if one fails inside: the others raise ProcessFailed with its reason."""
        try:
            yield
        except ProcessFailed:  # which the other processes know already
            raise
        except Exception as error:
            if self.count > 1:
                reason = (str(error).splitlines() or [""])[0]
                with suppress(ProcessFailed):
                    self._exchange(None, f"{type(error).__name__}: {reason}")
            raise

    def _exchange(self, value: ProcessValue, failure: str) -> list[ProcessValue]:
        """Gather values and failures; a process that failed itself does not look at those of others."""
        with _report_lost_process():
            reports: list[tuple[ProcessValue, str]] = _accelerate().utils.gather_object([(value, failure)])
        for rank, (_, reason) in enumerate(reports):
            if reason and not failure:
                raise ProcessFailed(f"process {rank} of {self.count}: {reason}")
        return [value for value, _ in reports]


def to_cpu(state: ProcessValue) -> ProcessValue:
    """Return nested dicts, lists and tuples with their tensors on the CPU."""
    return _accelerate().utils.send_to_device(state, "cpu")


@contextmanager
def _report_lost_process() -> Generator[None]:
    """Translate torch's error for a lost connection into ProcessFailed."""
    try:
        yield
    except RuntimeError:
        raise ProcessFailed(
            "another process of this training is gone: see why (out of memory, a lost machine), then resume the run"
        ) from None


def _accelerate() -> Any:
    """Import accelerate, which is hardly typed and not needed by a process that trains alone."""
    return import_module("accelerate")
