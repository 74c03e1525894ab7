"""Changes that are as large as what they change: of any weight and bias, of norms, and (IA)^3's of rows or columns."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import (
    Delta,
    Layer,
    Operands,
    TensorShape,
    broadcast_channels,
    multiply,
    reshape_to_weight,
)


class FullDelta(Delta):
    """A difference of a whole weight, and of its bias if it has one."""

    algorithm: ClassVar[str] = "full"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"diff"})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"diff_b"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0) -> Self:  # noqa: ARG003
        """Zeros for all of a layer."""
        tensors = {"diff": torch.zeros(layer.weight.shape)}
        return cls.from_tensors(tensors | ({} if layer.bias is None else {"diff_b": torch.zeros(layer.bias.shape)}))

    @property
    def needs_weight(self) -> bool:
        """It is what it is."""
        return False

    @property
    def weight_shape(self) -> TensorShape:
        """The shape of its weight."""
        return tuple(self.required_tensor("diff").shape)

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The difference, times the strength."""
        return multiply(reshape_to_weight(self.required_tensor("diff"), weight), strength)

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """That of the bias, times the strength."""
        bias_diff = self.tensor("diff_b")
        return None if bias_diff is None else multiply(bias_diff, strength)


class NormDelta(Delta):
    """Differences of the weight and the bias of a norm."""

    algorithm: ClassVar[str] = "norm"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"w_norm"})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"b_norm"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0) -> Self:  # noqa: ARG003
        """Zeros for a norm."""
        tensors = {"w_norm": torch.zeros(layer.weight.shape)}
        return cls.from_tensors(tensors | ({} if layer.bias is None else {"b_norm": torch.zeros(layer.bias.shape)}))

    @property
    def needs_weight(self) -> bool:
        """It is what it is."""
        return False

    @property
    def weight_shape(self) -> TensorShape:
        """The shape of its weight."""
        return tuple(self.required_tensor("w_norm").shape)

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The difference, times the strength."""
        return multiply(reshape_to_weight(self.required_tensor("w_norm"), weight), strength)

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """That of the bias, times the strength."""
        bias_diff = self.tensor("b_norm")
        return None if bias_diff is None else multiply(bias_diff, strength)


class IA3(Delta):
    """A factor less one for each row of a weight, or each of its columns where on_input is not 0 (Liu et al. 2022)."""

    algorithm: ClassVar[str] = "ia3"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"weight", "on_input"})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset()
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({"on_input"})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0, on_input: bool = False) -> Self:  # noqa: ARG003
        """Zeros for each row of a layer, or each column."""
        sizes = [1, -1, 1, 1] if layer.weight.ndim == 4 else [-1]
        weight = torch.zeros(layer.weight.shape[int(on_input)]).view(sizes)
        return cls.from_tensors({"weight": weight, "on_input": torch.tensor(float(on_input))})

    @property
    def weight_shape(self) -> TensorShape:
        """A square as large as it is long: it tells one side only."""
        return (self.required_tensor("weight").numel(),) * 2

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The weight itself, times the factors, times the strength."""
        factors = self.required_tensor("weight").flatten()
        axis = int(self.is_on_input) if not factors.is_meta else int(len(factors) != len(weight))
        if len(factors) != weight.shape[axis]:
            raise ValueError(f"{len(factors)} factors against {tuple(weight.shape)}")
        return weight.float() * factors.view(*[1] * axis, -1, *[1] * (weight.ndim - axis - 1)) * strength

    @property
    def is_on_input(self) -> bool:
        """Whether it multiplies columns, which is to say, what is read."""
        return bool(self.required_tensor("on_input"))

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """The factors, of rows; for columns what is added to the weight."""
        return (
            super().prepare_operands(layer, dtype)
            if self.is_on_input
            else (self.required_tensor("weight").flatten().to(dtype), None, None)
        )

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """What is added; of rows it is a share of what the layer made, its bias aside."""
        if len(operands) == 2:
            return super().output_delta(layer, inputs, base_output, strength, operands)
        assert operands[0] is not None
        return subtract_bias(layer, base_output) * broadcast_channels(self.drop_rows(operands[0]), layer) * strength


def subtract_bias(layer: Layer, base_output: Tensor) -> Tensor:
    """What a layer made by its weight alone."""
    return (
        base_output if layer.bias is None else base_output - broadcast_channels(layer.bias.to(base_output.dtype), layer)
    )
