"""Hooks for full differences: layers compute as if the differences had been added to their weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from velatura.overlays.deltas.delta import LAYER_TYPES, Delta, DenseOperands, Layer, layer_forward
from velatura.overlays.hooks.memo import tensor_version
from velatura.overlays.hooks.output_hooks import DeltaChange
from velatura.overlays.strength import LiveStrength


class FullWeightChange(DeltaChange):
    """Full difference that is added to a copy of the weight in float32, so that it rounds as in a merged checkpoint.

    If rows have different strengths, or if compiled code must read the strength as a tensor, the output of the
    difference is added to the layer's output instead.
    """

    def __init__(
        self, delta: Delta, strength: LiveStrength, factor: float, on_measure: Callable[[Tensor, Tensor], None]
    ) -> None:
        super().__init__(delta, strength, factor, on_measure)
        self._full_weights_cache: tuple[object, DenseOperands] | None = None

    def clear_cache(self) -> None:
        """Forget all computed values."""
        super().clear_cache()
        self._full_weights_cache = None

    @staticmethod
    def has_plain_forward(layer: nn.Module) -> bool:
        """Return True if a layer's output depends on its weights alone, and its forward was not replaced."""
        return type(layer) in LAYER_TYPES and "forward" not in vars(layer)

    def layer_output(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        """Compute the layer's output with the difference in its weights."""
        assert isinstance(layer, Layer)
        if torch.compiler.is_compiling() or not self._strength.number:
            base_output = _base_forward(layer, inputs)
            return self.add(layer, inputs, base_output, base_output)
        self._move_to(inputs.device)
        weight, bias = self._full_weights(layer)
        full_output = layer_forward(layer, inputs, weight, bias)
        if self._is_unmeasured:
            self._is_unmeasured = False
            with torch.no_grad():  # gradient checkpointing needs the same saved tensors at each call
                self._on_measure(_base_forward(layer, inputs), full_output)
        return full_output

    def _add_delta(self, layer: Layer, inputs: Tensor, base_output: Tensor, output: Tensor) -> Tensor:
        is_offloaded = layer.weight.is_meta  # offloading removes a weight right after its use
        if torch.compiler.is_compiling() or self._strength.number is None or is_offloaded:
            return super()._add_delta(layer, inputs, base_output, output)
        weight, bias = self._full_weights(layer)
        full_output = layer_forward(layer, inputs, weight, bias)
        return full_output if output is base_output else output + (full_output - base_output)

    def _full_weights(self, layer: Layer) -> DenseOperands:
        """Return the changed weight and bias in the layer's precision, cached until one of their parts changes."""
        if torch.is_grad_enabled() and self._delta.needs_grad:
            self._full_weights_cache = None  # left from a validation, it would only take memory
            return self._add_to_weights(layer)
        tensors = [tensor for tensor in (layer.weight, layer.bias, *self._delta.tensors) if tensor is not None]
        state = self._strength.version, self._strength.number, self._factor, *map(tensor_version, tensors)
        if self._full_weights_cache is None or self._full_weights_cache[0] != state:
            self._full_weights_cache = state, self._add_to_weights(layer)
        return self._full_weights_cache[1]

    def _add_to_weights(self, layer: Layer) -> DenseOperands:
        strength = cast("float", self._strength.number) * self._factor
        weight_delta = self._delta.weight_delta(layer.weight, strength)
        bias_delta = self._delta.bias_delta(layer.bias, strength)
        # keeps the memory format of the weight, on which the algorithm and the rounding of convolutions depend
        weight = torch.empty_like(layer.weight).copy_(layer.weight.float() + weight_delta)
        if bias_delta is None:
            return DenseOperands(weight, layer.bias)
        bias = bias_delta if layer.bias is None else layer.bias.float() + bias_delta
        return DenseOperands(weight, bias.to(layer.weight.dtype))


def _base_forward(layer: Layer, inputs: Tensor) -> Tensor:
    """Compute a layer's output without hooks."""
    return type(layer).forward(layer, inputs)  # pyright: ignore[reportArgumentType]


class TokenTableChange(DeltaChange):
    """Difference of a token or position table; ids below 0 stand for vectors of embeddings and are not changed."""

    def _add_delta(self, layer: Layer, inputs: Tensor, base_output: Tensor, output: Tensor) -> Tensor:
        # positions are the same for all texts, and looked up once for all rows
        rows_output = base_output if len(base_output) > 1 else base_output.expand(self._row_count, -1, -1)
        strength = self._strength.per_row(rows_output)
        rows = F.embedding(inputs.clamp(min=0), self._delta.weight_delta(layer.weight)) * (inputs >= 0).unsqueeze(-1)
        change = rows * strength * self._factor
        return torch.where(strength == 0, output, (output.float() + change).to(output.dtype))

    @property
    def _row_count(self) -> int:
        """Return the number of rows with strengths of their own."""
        return max(1, self._strength.tensor.numel())
