"""Caches of values that are computed from tensors, keyed by the identity and the version of these tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakIdRef

Value = TypeVar("Value")

MAX_MEMO_ENTRIES = 8  # prompt editing alternates between a few contexts


def tensor_version(tensor: Tensor) -> tuple[object, ...]:
    """Return a key that changes when a tensor is replaced, moved or written to.

    The key holds a weak reference, because a new tensor may get the id and the address of one that was freed. Writes
    to inference tensors are not visible in it.
    """
    version = -1 if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage]
    return WeakIdRef(tensor), version, tensor.dtype, tensor.device


class TensorMemo(Generic[Value]):
    """Memo of the last few values, keyed by their input tensors and a state.

    Inputs match if they are the same objects and were not written to since. Results of inference tensors are never
    kept, since writes to these are not visible.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[tuple[Tensor, ...], object, Value]] = []

    def clear(self) -> None:
        """Forget all values."""
        self._entries = []

    def get_or_compute(self, inputs: tuple[Tensor, ...], state: object, compute: Callable[[], Value]) -> Value:
        """Return the value kept for these inputs, this state and the autocast dtype; compute it if there is none."""
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
    """Return the dtype of autocast on the tensor's device, or None if autocast is off."""
    device = context.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class _ThreadEntry(threading.local):
    """Value that one thread computed in its current forward pass, and the layers that have used it."""

    key: object = None
    context: Tensor | None = None
    value: Tensor | None = None
    layer_ids: frozenset[int] = frozenset()


class SharedContextCache:
    """Cache of a changed context for all layers that read the same context in one forward pass of a training.

    The layers share its autograd graph. A layer that asks a second time begins a new forward pass, and computes again.
    With gradient checkpointing, which recomputes in the backward pass, nothing is shared.
    """

    def __init__(self) -> None:
        self._entries = _ThreadEntry(), _ThreadEntry()

    def get_or_compute(
        self, part: int, layer: object, context: Tensor, version: object, compute: Callable[[], Tensor]
    ) -> Tensor:
        """Return what K (part 0) or V (part 1) of a layer reads in place of a context, computed once for all layers."""
        if (
            torch.compiler.is_compiling()
            or not torch.is_grad_enabled()
            or _has_saved_tensors_hooks()
            or context.is_inference()
        ):
            return compute()
        entry, key = self._entries[part], (version, autocast_dtype(context), tensor_version(context))
        if entry.context is not context or entry.key != key or id(layer) in entry.layer_ids or entry.value is None:
            entry.value, entry.context, entry.key, entry.layer_ids = compute(), context, key, frozenset()
        entry.layer_ids |= {id(layer)}
        return entry.value

    def clear(self) -> None:
        """Release the last values."""
        for entry in self._entries:
            entry.value = entry.context = None


def _has_saved_tensors_hooks() -> bool:
    """Return True while hooks on saved tensors are active, as under gradient checkpointing."""
    autograd: Any = cast("Any", torch)._C._autograd
    return autograd._top_saved_tensors_default_hooks(True) is not None
