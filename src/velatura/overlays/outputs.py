"""How changes of what a layer computes add up behind that layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from velatura.errors import UnsupportedBase
from velatura.overlays.affine import stamp
from velatura.overlays.deltas.delta import Delta, Layer, Ready
from velatura.overlays.memory import precision_of
from velatura.overlays.strength import LiveStrength


class OutputChange(Protocol):
    """What one overlay adds to what one layer makes."""

    def add(self, layer: Layer, read: Tensor, made: Tensor, so_far: Tensor) -> Tensor:
        """What so far came out, with this on it; made: what the layer itself made of what it read."""
        ...


class DeltaChange:
    """A delta behind its layer, at a strength times a factor of that layer's own."""

    evaluations: int = 0  # it runs no networks

    def __init__(
        self, delta: Delta, strength: LiveStrength, factor: float, told: Callable[[Tensor, Tensor], None]
    ) -> None:
        self._delta, self._strength, self._factor, self._told = delta, strength, factor, told
        self._untold = True
        self._known: tuple[object, Ready] | None = None
        self._reads_weight = delta.reads_weight

    def forget(self) -> None:
        """Compute anew whatever was remembered."""
        self._known = None

    def add(self, layer: Layer, read: Tensor, made: Tensor, so_far: Tensor) -> Tensor:
        """What so far came out with the delta's share on it, exactly itself where the strength is 0."""
        if torch.compiler.is_compiling():
            return self._added(layer, read, made, so_far)
        if self._strength.number == 0 or self._is_dropped():
            return so_far
        self._follow(read.device)
        out = self._added(layer, read, made, so_far)
        if self._untold:
            self._untold = False
            self._told(so_far, out)
        return out

    def _added(self, layer: Layer, read: Tensor, made: Tensor, so_far: Tensor) -> Tensor:
        delta, strength = self._delta, self._strength.per_row(made) * self._factor
        if delta.dropout:
            read = functional.dropout(read, delta.dropout, delta.training)
        share = delta.output(layer, read, made, strength, self._ready(layer, read))
        out = (so_far + share).to(so_far.dtype)
        if self._factor and not torch.compiler.is_compiling() and self._strength.number:
            return out
        return torch.where(strength == 0, so_far, out)

    def _is_dropped(self) -> bool:
        """Whether all of it stays away from this step of a training."""
        drop = self._delta.module_dropout
        return bool(drop) and self._delta.training and bool(torch.rand(()) < drop)

    def _ready(self, layer: Layer, read: Tensor) -> Ready:
        """What the delta needs, made anew only once it changes, and each time while it is trained."""
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and self._delta.is_trained):
            return self._delta.ready(layer, read.dtype)
        own = self._delta.tensors
        if self._reads_weight:
            _refuse_absent(layer)
            own = [layer.weight, *own]
        state = read.dtype, precision_of(read), *map(stamp, own)
        if self._known is None or self._known[0] != state:
            self._known = state, self._delta.ready(layer, read.dtype)
        return self._known[1]

    def _follow(self, device: torch.device) -> None:
        self._strength.follow(device)
        if self._delta.tensors[0].device != device:
            self._delta.to(device)


def _refuse_absent(layer: Layer) -> None:
    """Refuse a layer whose weight is there only while it computes, to which nothing can be added afterwards."""
    if layer.weight.is_meta:
        raise UnsupportedBase(
            "a layer's weight is gone once it has computed, and the change depends on it: "
            "call enable_model_cpu_offload() instead of enable_sequential_cpu_offload()"
        )
