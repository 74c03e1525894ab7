"""What several layers read alike, computed once on each way through a model that is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from velatura.overlays.affine import tensor_version
from velatura.overlays.memory import autocast_dtype


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
