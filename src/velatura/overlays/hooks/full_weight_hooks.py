"""Whole differences behind their layers: computed as if they had been added to the weights."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.overlays.affine import tensor_version
from velatura.overlays.deltas.delta import LAYER_TYPES, Layer, Operands, layer_forward
from velatura.overlays.hooks.output_hooks import DeltaChange


class FullWeightChange(DeltaChange):
    """A difference of a whole weight, added to it in float32 before anything is computed with it.

    So nothing is rounded that would not be in a checkpoint. Where rows have strengths of their own, or compiled code
    must read the strength as a tensor, the difference is applied beside.
    """

    @staticmethod
    def has_plain_forward(layer: nn.Module) -> bool:
        """Whether all that a layer makes can be told by its weights, and nobody has put a forward of theirs on it."""
        return type(layer) in LAYER_TYPES and "forward" not in vars(layer)

    def layer_output(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        """What the layer makes of what it reads, with the difference in its weights."""
        assert isinstance(layer, Layer)
        if torch.compiler.is_compiling() or not self._strength.number:
            base_output = _base_forward(layer, inputs)
            return self.add(layer, inputs, base_output, base_output)
        self._move_to(inputs.device)
        weight, bias = self._full_weights(layer)
        full_output = layer_forward(layer, inputs, cast("Tensor", weight), bias)
        if self._is_unmeasured:
            self._is_unmeasured = False
            with torch.no_grad():  # what is kept for the way back must be the same at each call
                self._on_measure(_base_forward(layer, inputs), full_output)
        return full_output

    def _add_delta(self, layer: Layer, inputs: Tensor, base_output: Tensor, output: Tensor) -> Tensor:
        is_gone = layer.weight.is_meta  # sent away by offloading, after it was used
        if torch.compiler.is_compiling() or self._strength.number is None or is_gone:
            return super()._add_delta(layer, inputs, base_output, output)
        weight, bias = self._full_weights(layer)
        full_output = layer_forward(layer, inputs, cast("Tensor", weight), bias)
        return full_output if output is base_output else output + (full_output - base_output)

    def _full_weights(self, layer: Layer) -> Operands:
        """The changed weight and bias in the layer's precision, kept for as long as nothing changes them."""
        if torch.is_grad_enabled() and self._delta.needs_grad:
            self._cached = None  # of an examination in between: it would lie about in memory
            return self._add_to_weights(layer)
        tensors = [tensor for tensor in (layer.weight, layer.bias, *self._delta.tensors) if tensor is not None]
        state = self._strength.version, self._strength.number, self._factor, *map(tensor_version, tensors)
        if self._cached is None or self._cached[0] != state:
            self._cached = state, self._add_to_weights(layer)
        return self._cached[1]

    def _add_to_weights(self, layer: Layer) -> Operands:
        strength = cast("float", self._strength.number) * self._factor
        weight_delta, bias_delta = (
            self._delta.weight_delta(layer.weight, strength),
            self._delta.bias_delta(layer.bias, strength),
        )
        # in the weight's own layout in memory, by which convolutions choose their way and round
        weight = torch.empty_like(layer.weight).copy_(layer.weight.float() + weight_delta)
        if bias_delta is None:
            return weight, layer.bias
        bias = bias_delta if layer.bias is None else layer.bias.float() + bias_delta
        return weight, bias.to(layer.weight.dtype)


def _base_forward(layer: Layer, inputs: Tensor) -> Tensor:
    """What a layer makes by itself."""
    return type(layer).forward(layer, inputs)  # pyright: ignore[reportArgumentType]


class TokenTableChange(DeltaChange):
    """A difference of a table of words or places; tokens below 0, which stand for an embedding's vectors, have none."""

    def _add_delta(self, layer: Layer, inputs: Tensor, base_output: Tensor, output: Tensor) -> Tensor:
        strength = self._strength.per_row(
            base_output if len(base_output) > 1 else base_output.expand(self._row_count, -1, -1)
        )
        rows = F.embedding(inputs.clamp(min=0), self._delta.weight_delta(layer.weight)) * (inputs >= 0).unsqueeze(-1)
        change = rows * strength * self._factor
        return torch.where(strength == 0, output, (output.float() + change).to(output.dtype))

    @property
    def _row_count(self) -> int:
        """How many rows have a strength of their own: places are the same for all texts, and looked up once."""
        return max(1, self._strength.tensor.numel())
