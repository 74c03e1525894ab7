"""(IA)^3: factors for the rows or the columns of a weight (Liu et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from velatura.errors import BadOverlay
from velatura.overlays.deltas.delta import (
    Delta,
    DenseOperands,
    Layer,
    Operands,
    TensorShape,
    broadcast_channels,
    subtract_bias,
)


class RowFactors(NamedTuple):
    """Factors of a weight's rows minus 1, (out,)."""

    factors: Tensor


class IA3(Delta):
    """Factors minus 1 for the rows of a weight, or for its columns if on_input is not 0. The bias is not changed."""

    algorithm: ClassVar[str] = "ia3"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"weight", "on_input"})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset()
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({"on_input"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0, on_input: bool = False) -> Self:  # noqa: ARG003
        """Build zeros for the rows of a layer, or for its columns."""
        sizes = [1, -1, 1, 1] if layer.weight.ndim == 4 else [-1]
        weight = torch.zeros(layer.weight.shape[int(on_input)]).view(sizes)
        return cls.from_tensors({"weight": weight, "on_input": torch.tensor(float(on_input))})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Build a delta as Delta.from_tensors does; on_input must be 0 or 1."""
        on_input = tensors.get("on_input")
        if on_input is not None and (on_input.numel() != 1 or not (on_input.is_meta or float(on_input) in {0.0, 1.0})):
            raise BadOverlay(
                "(IA)^3 has an on_input that is neither 0 nor 1: the file is damaged, so download it again"
            )
        return super().from_tensors(tensors)

    @property
    def weight_shape(self) -> TensorShape:
        """Return (factors, factors), as only one side of the weight follows from its tensors."""
        return (self.required_tensor("weight").numel(),) * 2

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the weight times the factors times the strength."""
        factors = self.required_tensor("weight").flatten()
        axis = int(self.is_on_input) if not factors.is_meta else int(len(factors) != len(weight))
        if len(factors) != weight.shape[axis]:
            raise ValueError(f"{len(factors)} factors against {tuple(weight.shape)}")
        return weight.float() * factors.view(*[1] * axis, -1, *[1] * (weight.ndim - axis - 1)) * strength

    def is_compatible(self, weight: Tensor) -> bool:
        """Return True if there is a factor for each row or, if on_input is not 0, for each column of the weight."""
        return len(self.required_tensor("weight").flatten()) == weight.shape[int(self.is_on_input)]

    @property
    def is_on_input(self) -> bool:
        """Return True if the factors are for columns, and so for the layer's input."""
        return bool(self.required_tensor("on_input"))

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """Return the factors of rows; for columns the change of the weight."""
        if self.is_on_input:
            return super().prepare_operands(layer, dtype)
        return RowFactors(self.required_tensor("weight").flatten().to(dtype))

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """Return the change of a layer's output; for rows it is the output without its bias, times the factors."""
        if isinstance(operands, DenseOperands):
            return super().output_delta(layer, inputs, base_output, strength, operands)
        return subtract_bias(layer, base_output) * self._broadcast_factors(layer, operands) * strength

    def _broadcast_factors(self, layer: Layer, operands: Operands) -> Tensor:
        assert isinstance(operands, RowFactors)
        return broadcast_channels(self.drop_rows(operands.factors), layer)


class BiasedIA3(IA3):
    """(IA)^3 as in its paper and in peft: the factors apply to the whole output of a layer, with its bias."""

    algorithm: ClassVar[str] = "ia3-bias"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"weight", "on_input", "on_bias"})
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({"on_input", "on_bias"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0, on_input: bool = False) -> Self:  # noqa: ARG003
        """Build zeros for the rows of a layer."""
        weight = torch.zeros(layer.weight.shape[0])
        return cls.from_tensors({"weight": weight, "on_input": torch.tensor(0.0), "on_bias": torch.tensor(1.0)})

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:
        """Return the bias times the factors times the strength."""
        return None if bias is None else bias.float() * self.required_tensor("weight").flatten() * strength

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """Return the change of a layer's output: the output times the factors."""
        if isinstance(operands, DenseOperands):
            return super().output_delta(layer, inputs, base_output, strength, operands)
        return base_output * self._broadcast_factors(layer, operands) * strength
