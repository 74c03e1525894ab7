"""Affine maps: hypernetworks without activations are such maps, which can be folded into the layer behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Self, TypeGuard, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AffineMap:
    """Affine map x -> matrix x + shift, in float32.

    Attributes:
        matrix: (width, width).
        shift: (width,).
    """

    matrix: Tensor
    shift: Tensor

    @staticmethod
    def is_affine_network(network: nn.Sequential) -> bool:
        """Return True if a network in eval mode is an affine map."""
        return all(isinstance(layer, nn.Linear | nn.Identity | nn.Dropout) for layer in network)

    @classmethod
    @torch.no_grad()
    def from_network(cls, network: nn.Sequential) -> Self:
        """Multiply the Linear layers of a network in eval mode into one map, in float64 until the end."""
        layers = [layer for layer in cast("Iterable[nn.Module]", network) if isinstance(layer, nn.Linear)]
        maps = [cls(to_float64(layer.weight), to_float64(layer.bias)) for layer in layers]
        product = reduce(lambda first, then: then.compose(first), maps)
        device = layers[0].weight.device
        return cls(product.matrix.float().to(device), product.shift.float().to(device))

    def compose(self, first: Self) -> Self:
        """Return the map that applies `first`, and then this one."""
        return type(self)(self.matrix @ first.matrix, self.matrix @ first.shift + self.shift)

    def residual(self, strength: float) -> Self:
        """Return the map x -> x + strength * (this map of x)."""
        identity = torch.eye(*self.matrix.shape, device=self.matrix.device)
        return type(self)(identity + strength * self.matrix, strength * self.shift)


@dataclass(frozen=True)
class FoldedWeights:
    """Weight and bias of a projection with affine maps folded in."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    @torch.no_grad()
    def fold(cls, layer: nn.Linear, maps: Sequence[AffineMap]) -> Self:
        """Copy a projection's weight and bias, and fold maps into the copies.

        Args:
            layer: The projection, which is not changed.
            maps: The maps in front of it, in the order in which they act.

        Returns:
            Weight and bias in the dtype of the layer. Without maps they are the layer's own.
        """
        layer_weight, bias = layer.weight, cast("Tensor | None", layer.bias)
        if not maps:
            return cls(layer_weight, bias)
        weight = layer_weight.float()
        shift = weight.new_zeros(len(weight)) if bias is None else bias.float()
        for affine_map in reversed(maps):
            shift = shift + weight @ affine_map.shift.to(layer_weight.device)
            weight = weight @ affine_map.matrix.to(layer_weight.device)
        return cls(weight.to(layer_weight.dtype), shift.to(layer_weight.dtype))


def to_float64(tensor: Tensor) -> Tensor:
    """Copy a tensor to float64, on the CPU if its device may lack float64."""
    return tensor.to(float64_device(tensor.device), torch.float64)


def float64_device(device: torch.device) -> torch.device:
    """Return the device if it supports float64, else the CPU: Apple's GPUs lack it, and some of Intel's."""
    return device if device.type in {"cpu", "cuda"} else torch.device("cpu")


def is_foldable(layer: nn.Module, our_hook_count: int = 0) -> TypeGuard[nn.Linear]:
    """Return True if a projection is a plain Linear with no more pre-hooks than ours, and no forward hooks."""
    hooks = cast("dict[str, dict[int, object]]", vars(layer))
    has_other_hooks = hooks["_forward_hooks"] or len(hooks["_forward_pre_hooks"]) > our_hook_count
    return type(layer) is nn.Linear and not has_other_hooks
