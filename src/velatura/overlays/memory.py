"""What was computed from tensors that are still the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from velatura.overlays.affine import tensor_version

Value = TypeVar("Value")

MAX_MEMO_ENTRIES = 8  # prompt editing goes back and forth between a few contexts


class TensorMemo(Generic[Value]):
    """Values by the very tensors, and the state, that they were made from; the last few are kept.

    A tensor is the same while it is the same object and was not written to: its address says nothing, since another
    one may come to lie there. What inference mode makes may change unnoticed, so it is never remembered.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[tuple[Tensor, ...], object, Value]] = []

    def clear(self) -> None:
        """Make everything anew."""
        self._entries = []

    def get_or_compute(self, inputs: tuple[Tensor, ...], state: object, compute: Callable[[], Value]) -> Value:
        """The value made before from these inputs in this state, or else made now."""
        if any(tensor.is_inference() for tensor in inputs):
            return compute()
        key = state, autocast_dtype(inputs[0]), tuple(map(tensor_version, inputs))
        for cached_inputs, cached_key, value in self._entries:
            if cached_key == key and all(a is b for a, b in zip(cached_inputs, inputs, strict=True)):
                return value
        value = compute()
        self._entries = [*self._entries[-(MAX_MEMO_ENTRIES - 1) :], (inputs, key, value)]
        return value


def autocast_dtype(context: Tensor) -> object:
    """What autocast would compute in on a tensor's device, or None."""
    device = context.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
