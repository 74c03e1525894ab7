"""What several layers read alike, computed once on each way through a model that is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

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


class _ThreadEntry(threading.local):
    """What one thread computed on its present way through the model, and for which layers."""

    key: object = None
    context: Tensor | None = None
    value: Tensor | None = None
    layer_ids: frozenset[int] = frozenset()


class SharedContextCache:
    """A change of a context that all layers which read that context share, with its gradients.

    A layer that asks a second time is on a new way through the model, whose gradients are another matter. Where what is
    computed is dropped and computed again on the way back, each layer must compute for itself.
    """

    def __init__(self) -> None:
        self._entries = _ThreadEntry(), _ThreadEntry()

    def get_or_compute(
        self, part: int, layer: object, context: Tensor, version: object, compute: Callable[[], Tensor]
    ) -> Tensor:
        """What K (part 0) or V (1) of a layer reads in place of a context."""
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
        """Let go of what was computed last."""
        for entry in self._entries:
            entry.value = entry.context = None


def _has_saved_tensors_hooks() -> bool:
    """Whether somebody decides what is kept for the way back: checkpointing does."""
    autograd: Any = cast("Any", torch)._C._autograd
    return autograd._top_saved_tensors_default_hooks(True) is not None
