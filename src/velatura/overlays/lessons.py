"""What several layers read alike, computed once on each way through a model that is trained."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from velatura.overlays.affine import stamp
from velatura.overlays.memory import precision_of


class _Kept(threading.local):
    """What one thread computed on its present way through the model, and for which layers."""

    state: object = None
    context: Tensor | None = None
    value: Tensor | None = None
    asked: frozenset[int] = frozenset()


class Lessons:
    """A change of a context that all layers which read that context share, with its gradients.

    A layer that asks a second time is on a new way through the model, whose gradients are another matter. Where what is
    computed is dropped and computed again on the way back, each layer must compute for itself.
    """

    def __init__(self) -> None:
        self._kept = _Kept(), _Kept()

    def recall(self, part: int, layer: object, context: Tensor, version: object, make: Callable[[], Tensor]) -> Tensor:
        """What K (part 0) or V (1) of a layer reads in place of a context."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or _is_watched() or context.is_inference():
            return make()
        kept, state = self._kept[part], (version, precision_of(context), stamp(context))
        if kept.context is not context or kept.state != state or id(layer) in kept.asked or kept.value is None:
            kept.value, kept.context, kept.state, kept.asked = make(), context, state, frozenset()
        kept.asked |= {id(layer)}
        return kept.value

    def forget(self) -> None:
        """Let go of what was computed last."""
        for kept in self._kept:
            kept.value = kept.context = None


def _is_watched() -> bool:
    """Whether somebody decides what is kept for the way back: checkpointing does."""
    autograd: Any = cast("Any", torch)._C._autograd
    return autograd._top_saved_tensors_default_hooks(True) is not None
