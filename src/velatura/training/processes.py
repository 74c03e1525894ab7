"""Several processes that train one overlay together: the first leads, the others do the steps that it calls for."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from velatura.errors import ProcessFailed, TrainingDiverged
from velatura.training.signals import StopSignal

PROCESS_TIMEOUT = timedelta(days=1)  # that a process waits for the others: one may be making previews
MAX_AVERAGED_NUMBERS = 2**24  # numbers that are averaged in one go; more of them would only take memory
OVER = "over"

distributed: Any = torch.distributed  # hardly typed


class Follower(Protocol):
    """What learns in a process that follows: what the one that leads does, it does too."""

    def training_step(self, step: int, rate: float, part_rates: Mapping[str, float] | None = None) -> float:
        """Take a step."""
        ...

    def load_state(self, state: Any) -> None:
        """Be as the leading process's."""
        ...


@dataclass
class Team:
    """The processes, this one's place among them, and the signal by which one of them was told to stop."""

    rank: int = 0
    size: int = 1
    signal_name: str = ""
    stop: StopSignal = field(default_factory=StopSignal)
    _group: Any = None

    @classmethod
    def join(cls, device: torch.device) -> Team:
        """All processes that were launched with this one, once they are there too, or this one alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        accelerate: Any = import_module("accelerate")
        state = accelerate.PartialState(cpu=device.type == "cpu", timeout=PROCESS_TIMEOUT)
        group = distributed.new_group(backend="gloo", timeout=PROCESS_TIMEOUT)  # what is said goes past the GPUs
        return cls(state.process_index, state.num_processes, _group=group)

    @property
    def leads(self) -> bool:
        """Whether this process decides, and keeps the run's folder."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.size == 1

    def rows(self, batch_size: int) -> slice:
        """Which rows of all processes' batches are this one's."""
        return slice(self.rank * batch_size, (self.rank + 1) * batch_size)

    def wait(self) -> None:
        """Go on when all have come here."""
        if not self.is_alone:
            with _collective():
                distributed.barrier(group=self._group)

    def broadcast(self, value: object) -> Any:
        """What the leading process says, in all of them."""
        if self.is_alone:
            return value
        message: list[object] = [value if self.leads else None]
        with _collective():
            distributed.broadcast_object_list(message, src=0, group=self._group)
        return message[0]

    def call(self, name: str, *arguments: object) -> None:
        """Let the others do what this one is about to do, if it leads them."""
        if self.leads:
            self.broadcast((name, arguments))

    def check(self) -> None:
        """Stop here if another process was told to."""
        if self.signal_name:
            raise KeyboardInterrupt(self.signal_name)

    def mean(self, backward: Callable[[], Tensor], weights: Iterable[Tensor]) -> Tensor:
        """Let every process find its loss and gradients, and give all of them the means of both.

        Raises ProcessFailed where another process could not.
        """
        if self.is_alone:
            return backward()
        loss, error = torch.zeros(()), None
        try:
            loss = backward()
        except BaseException as failure:  # noqa: BLE001 - raised again, when the others know
            error = failure
        self._raise_any_error(error)
        self._average([loss], self._group)
        weights = [weight for weight in weights if weight.requires_grad]
        shares = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.float32)
        self._average([shares], self._group)
        learned = [weight for weight, share in zip(weights, shares, strict=True) if share > 0]
        for weight in learned:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [cast("Tensor", weight.grad) for weight in learned]
        group = self._group if loss.device.type == "cpu" and _on_cpu(gradients) else None
        for batch in _batches_of(gradients):
            self._average(batch, group)
        return loss

    def follow(self, follower: Follower) -> bool:
        """Do what the leading process calls for until it is over; whether it came to its end."""
        error: Exception | None = None
        while True:
            try:
                name, arguments = self.broadcast(None)
            except ProcessFailed:  # whoever looks after the leading one says why it is gone
                return False
            if name == OVER and error:
                raise error
            if name == OVER:
                return bool(arguments[0])
            try:
                if error:
                    self._raise_any_error(error)
                getattr(follower, name)(*arguments)
            except TrainingDiverged:  # as the leading one has seen, which goes back or gives up
                continue
            except Exception as failure:  # noqa: BLE001 - raised when it is over, which the leading one then says
                error = failure

    @contextmanager
    def lead(self) -> Generator[None]:
        """Tell the others at the end that it is over, and whether all went well."""
        went_well = False
        try:
            yield
            went_well = True
        finally:
            if not self.is_alone:
                with suppress(ProcessFailed):
                    self.call(OVER, went_well)

    def _raise_any_error(self, error: BaseException | None) -> None:
        """Raise this process's error, or else another one's; and hear which signals came."""
        reports: list[tuple[str, str]] = [("", "")] * self.size
        with _collective():
            distributed.all_gather_object(reports, (_line(error), self.stop.signal_name), group=self._group)
        self.signal_name = next((name for _, name in reports if name), self.signal_name)
        if error:
            raise error
        for rank, (failure, _) in enumerate(reports):
            if failure:
                raise ProcessFailed(f"process {rank} of {self.size}: {failure}")

    def _average(self, tensors: Sequence[Tensor], group: Any) -> None:
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with _collective():
            distributed.all_reduce(flat, group=group)
        flat /= self.size
        first = 0
        for tensor in tensors:
            tensor.detach().copy_(flat[first : first + tensor.numel()].view_as(tensor))
            first += tensor.numel()


def move_to_device(state: Any, device: torch.device) -> Any:
    """The tensors in dicts, lists and tuples on another device, and all else as it is."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {name: move_to_device(value, device) for name, value in cast("dict[object, object]", state).items()}
    if isinstance(state, list):
        return [move_to_device(value, device) for value in cast("list[object]", state)]
    if isinstance(state, tuple):
        return tuple(move_to_device(value, device) for value in cast("tuple[object, ...]", state))
    return state


@contextmanager
def _collective() -> Generator[None]:
    """Do what takes all processes; raises ProcessFailed where one is gone."""
    try:
        yield
    except RuntimeError:
        raise ProcessFailed(
            "another process of this training is gone: see why (no memory, a lost machine), then resume the run"
        ) from None


def _line(error: BaseException | None) -> str:
    return "" if error is None else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _on_cpu(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.device.type == "cpu" for tensor in tensors)


def _batches_of(tensors: Sequence[Tensor]) -> Generator[list[Tensor]]:
    batch: list[Tensor] = []
    for tensor in tensors:
        if batch and sum(map(Tensor.numel, batch)) + tensor.numel() > MAX_AVERAGED_NUMBERS:
            yield batch
            batch = []
        batch.append(tensor)
    if batch:
        yield batch
