"""Full differences of a layer's weight and bias: as large as the layer itself."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Delta, Layer, TensorShape, multiply, reshape_to_weight


class FullRankDelta(Delta):
    """Base class of full differences, which differ in the names of their tensors."""

    weight_suffix: ClassVar[str]
    bias_suffix: ClassVar[str]

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int = 0, alpha: float = 0.0) -> Self:  # noqa: ARG003
        """Build zeros for the weight, and for the bias if the layer has one."""
        tensors = {cls.weight_suffix: torch.zeros(layer.weight.shape)}
        if layer.bias is not None:
            tensors[cls.bias_suffix] = torch.zeros(layer.bias.shape)
        return cls.from_tensors(tensors)

    @property
    def needs_weight(self) -> bool:
        """Return False: the change does not depend on the weight."""
        return False

    @property
    def weight_shape(self) -> TensorShape:
        """Return the shape of the weight."""
        return tuple(self.required_tensor(self.weight_suffix).shape)

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the difference of the weight, times the strength."""
        return multiply(reshape_to_weight(self.required_tensor(self.weight_suffix), weight), strength)

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """Return the difference of the bias, times the strength."""
        bias_diff = self.tensor(self.bias_suffix)
        return None if bias_diff is None else multiply(bias_diff, strength)


class FullDelta(FullRankDelta):
    """Full difference of the weight and the bias of a Linear or convolution layer."""

    algorithm: ClassVar[str] = "full"
    weight_suffix: ClassVar[str] = "diff"
    bias_suffix: ClassVar[str] = "diff_b"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"diff"})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"diff_b"})


class NormDelta(FullRankDelta):
    """Full difference of the weight and the bias of a GroupNorm or LayerNorm."""

    algorithm: ClassVar[str] = "norm"
    weight_suffix: ClassVar[str] = "w_norm"
    bias_suffix: ClassVar[str] = "b_norm"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({"w_norm"})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"b_norm"})
