"""Whole differences behind their layers: computed as if they had been added to the weights."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.overlays.affine import stamp
from velatura.overlays.deltas.delta import LAYERS, Layer, Ready, computed
from velatura.overlays.outputs import DeltaChange


class WholeChange(DeltaChange):
    """A difference of a whole weight, added to it in float32 before anything is computed with it.

    So nothing is rounded that would not be in a checkpoint. Where rows have strengths of their own, or compiled code
    must read the strength as a tensor, the difference is applied beside.
    """

    @staticmethod
    def replaces(layer: nn.Module) -> bool:
        """Whether all that a layer makes can be told by its weights, and nobody has put a forward of theirs on it."""
        return type(layer) in LAYERS and "forward" not in vars(layer)

    def made(self, layer: nn.Module, read: Tensor) -> Tensor:
        """What the layer makes of what it reads, with the difference in its weights."""
        assert isinstance(layer, Layer)
        if torch.compiler.is_compiling() or not self._strength.number:
            plain = _plain(layer, read)
            return self.add(layer, read, plain, plain)
        self._follow(read.device)
        weight, bias = self._whole(layer)
        whole = computed(layer, read, cast("Tensor", weight), bias)
        if self._untold:
            self._untold = False
            with torch.no_grad():  # what is kept for the way back must be the same at each call
                self._told(_plain(layer, read), whole)
        return whole

    def _added(self, layer: Layer, read: Tensor, made: Tensor, so_far: Tensor) -> Tensor:
        is_gone = layer.weight.is_meta  # sent away by offloading, after it was used
        if torch.compiler.is_compiling() or self._strength.number is None or is_gone:
            return super()._added(layer, read, made, so_far)
        weight, bias = self._whole(layer)
        whole = computed(layer, read, cast("Tensor", weight), bias)
        return whole if so_far is made else so_far + (whole - made)

    def _whole(self, layer: Layer) -> Ready:
        """The changed weight and bias in the layer's precision, kept for as long as nothing changes them."""
        if torch.is_grad_enabled() and self._delta.is_trained:
            self._known = None  # of an examination in between: it would lie about in memory
            return self._summed(layer)
        own = [each for each in (layer.weight, layer.bias, *self._delta.tensors) if each is not None]
        state = self._strength.version, self._strength.number, self._factor, *map(stamp, own)
        if self._known is None or self._known[0] != state:
            self._known = state, self._summed(layer)
        return self._known[1]

    def _summed(self, layer: Layer) -> Ready:
        strength = cast("float", self._strength.number) * self._factor
        change, bias_change = self._delta.change(layer.weight, strength), self._delta.bias_change(layer.bias, strength)
        # in the weight's own layout in memory, by which convolutions choose their way and round
        weight = torch.empty_like(layer.weight).copy_(layer.weight.float() + change)
        if bias_change is None:
            return weight, layer.bias
        bias = bias_change if layer.bias is None else layer.bias.float() + bias_change
        return weight, bias.to(layer.weight.dtype)


def _plain(layer: Layer, read: Tensor) -> Tensor:
    """What a layer makes by itself."""
    return type(layer).forward(layer, read)  # pyright: ignore[reportArgumentType]


class TableChange(DeltaChange):
    """A difference of a table of words or places; tokens below 0, which stand for an embedding's vectors, have none."""

    def _added(self, layer: Layer, read: Tensor, made: Tensor, so_far: Tensor) -> Tensor:
        strength = self._strength.per_row(made if len(made) > 1 else made.expand(self._row_count, -1, -1))
        rows = F.embedding(read.clamp(min=0), self._delta.change(layer.weight)) * (read >= 0).unsqueeze(-1)
        share = rows * strength * self._factor
        return torch.where(strength == 0, so_far, (so_far.float() + share).to(so_far.dtype))

    @property
    def _row_count(self) -> int:
        """How many rows have a strength of their own: places are the same for all texts, and looked up once."""
        return max(1, self._strength.tensor.numel())
