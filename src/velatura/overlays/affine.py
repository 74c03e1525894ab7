"""Hypernetworks that are affine maps, and how such maps go into the weights behind them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Self, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdRef


@dataclass(frozen=True)
class AffineMap:
    """x -> matrix x + shift, in float32; matrix: (width, width), shift: (width,)."""

    matrix: Tensor
    shift: Tensor

    @staticmethod
    def is_affine_network(network: nn.Sequential) -> bool:
        """Whether a network in eval mode is an affine map."""
        return all(isinstance(layer, nn.Linear | nn.Identity | nn.Dropout) for layer in network)

    @classmethod
    @torch.no_grad()
    def from_network(cls, network: nn.Sequential) -> Self:
        """The map that a network in eval mode is: the product of its Linear layers, in float64 until the end."""
        layers = [layer for layer in cast("Iterable[nn.Module]", network) if isinstance(layer, nn.Linear)]
        maps = [cls(to_float64(layer.weight), to_float64(layer.bias)) for layer in layers]
        product, device = reduce(lambda first, then: then.compose(first), maps), layers[0].weight.device
        return cls(product.matrix.float().to(device), product.shift.float().to(device))

    def compose(self, first: Self) -> Self:
        """This map of what another one gives."""
        return type(self)(self.matrix @ first.matrix, self.matrix @ first.shift + self.shift)

    def residual(self, strength: float) -> Self:
        """x + strength * this map."""
        identity = torch.eye(*self.matrix.shape, device=self.matrix.device)
        return type(self)(identity + strength * self.matrix, strength * self.shift)


@dataclass(frozen=True)
class FoldedWeights:
    """What a projection multiplies with and adds, once maps are folded into it."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    @torch.no_grad()
    def fold(cls, layer: nn.Linear, maps: Sequence[AffineMap]) -> Self:
        """Copies of a projection's weight and bias with affine maps folded in, the first map being read first."""
        layer_weight, bias = layer.weight, layer.bias
        if not maps:
            return cls(layer_weight, bias)
        weight = layer_weight.float()
        shift = (
            layer_weight.new_zeros(len(layer_weight), dtype=torch.float32)
            if cast("Tensor | None", bias) is None
            else bias.float()
        )
        for affine_map in reversed(maps):
            shift = shift + weight @ affine_map.shift.to(layer_weight.device)
            weight = weight @ affine_map.matrix.to(layer_weight.device)
        return cls(weight.to(layer_weight.dtype), shift.to(layer_weight.dtype))


def to_float64(tensor: Tensor) -> Tensor:
    """A tensor in float64, on a device that has it."""
    return tensor.to(float64_device(tensor.device), torch.float64)


def float64_device(device: torch.device) -> torch.device:
    """A device itself, or the CPU where it may not know float64: Apple's does not, and Intel's not always."""
    return device if device.type in {"cpu", "cuda"} else torch.device("cpu")


def is_foldable(layer: nn.Module, our_hook_count: int = 0) -> TypeGuard[nn.Linear]:
    """Whether a projection computes nothing but its own product, and nobody but our hooks (so many) listens."""
    hooks = cast("dict[str, dict[int, object]]", vars(layer))
    has_other_hooks = hooks["_forward_hooks"] or len(hooks["_forward_pre_hooks"]) > our_hook_count
    return type(layer) is nn.Linear and not has_other_hooks


def tensor_version(tensor: Tensor) -> tuple[object, ...]:
    """Something that differs once a tensor is replaced, moved, or written to; one of inference mode hides the last.

    A reference, not an id: a tensor that takes the place of a dead one in memory takes its id too.
    """
    version = -1 if tensor.is_inference() else tensor._version  # pyright: ignore[reportPrivateUsage]
    return WeakIdRef(tensor), version, tensor.dtype, tensor.device
