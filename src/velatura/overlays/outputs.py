"""How changes of what a layer computes add up behind that layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import Delta
from velatura.overlays.strength import LiveStrength


class OutputChange(Protocol):
    """What one overlay adds to what one layer makes."""

    def add(self, layer: nn.Module, read: Tensor, made: Tensor, so_far: Tensor) -> Tensor:
        """What so far came out with this on it; made: what the layer itself made of what it read."""
        ...


class DeltaChange:
    """A delta behind its layer, at a strength times a factor of that layer's own."""

    def __init__(
        self, delta: Delta, strength: LiveStrength, factor: float, told: Callable[[Tensor, Tensor], None]
    ) -> None:
        self._delta, self._strength, self._factor, self._told = delta, strength, factor, told
        self._untold = True

    def add(self, layer: nn.Module, read: Tensor, made: Tensor, so_far: Tensor) -> Tensor:
        """What so far came out with the delta's share on it, exactly itself where the strength is 0."""
        compiling = torch.compiler.is_compiling()
        if not compiling:
            if self._strength.number == 0:
                return so_far
            self._follow(read.device)
        share = self._delta.output(layer, read, made)  # pyright: ignore[reportArgumentType]
        strength = self._strength.per_row(made) * self._factor
        out = torch.where(strength == 0, so_far, (so_far + share * strength).to(so_far.dtype))
        if self._untold and not compiling:
            self._untold = False
            self._told(so_far, out)
        return out

    def _follow(self, device: torch.device) -> None:
        self._strength.follow(device)
        if next(self._delta.parameters()).device != device:
            self._delta.to(device)
