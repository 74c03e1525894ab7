"""A change of one layer's weight, whatever way it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from velatura.errors import UnsupportedBase

Layer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm


class Delta(nn.Module):
    """What is added to the weight of one layer; its parameters and buffers are named as in kohya's and LyCORIS' files.

    tell: the suffix by which its tensors are told; constants: those that are not trained. Everything is reckoned in
    float32, and what is added is proportional to the strength unless a kind says otherwise.
    """

    algorithm: ClassVar[str]
    tell: ClassVar[str]
    constants: ClassVar[frozenset[str]] = frozenset({"alpha"})

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Build it of the tensors that a file has for one layer, by their suffixes."""
        made = cls()
        for suffix, tensor in tensors.items():
            made.put(suffix, tensor)
        return made

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing."""
        raise NotImplementedError

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32."""
        raise NotImplementedError

    def bias_change(self, strength: float = 1.0) -> Tensor | None:
        """What is added to the bias at a strength, in float32, or None."""
        return None

    def output(self, layer: Layer, read: Tensor, made: Tensor) -> Tensor:
        """What is added to what a layer made of what it read, at strength 1."""
        bias = self.bias_change()
        return computed(layer, read, self.change(layer.weight), bias)

    def put(self, suffix: str, tensor: Tensor) -> None:
        """Take a tensor in under the suffix that it has in files."""
        *path, name = suffix.split(".")
        owner: nn.Module = self
        for each in path:
            if each not in dict(owner.named_children()):
                owner.add_module(each, nn.Module())
            owner = owner.get_submodule(each)
        if suffix in self.constants:
            owner.register_buffer(name, tensor)
        else:
            owner.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))

    def tensor(self, suffix: str) -> Tensor | None:
        """One of its tensors in float32, or None where it lacks it."""
        found: object = self
        for each in suffix.split("."):
            found = getattr(found, each, None)
        return found.float() if isinstance(found, Tensor) else None

    def of(self, suffix: str) -> Tensor:
        """One of its tensors that cannot lack, in float32."""
        found = self.tensor(suffix)
        assert found is not None
        return found

    def scale(self, rank: int) -> Tensor | float:
        """Alpha over rank, or 1 where there is no alpha."""
        alpha = self.tensor("alpha")
        return 1.0 if alpha is None else alpha / rank


def computed(layer: nn.Module, read: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer would make with another weight and bias, in the precision of what it reads."""
    weight, bias = weight.to(read.dtype), None if bias is None else bias.to(read.dtype)
    if isinstance(layer, nn.Linear):
        return functional.linear(read, weight, bias)
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(read, weight, bias)  # pyright: ignore[reportPrivateUsage]
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(read, layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(read, cast("list[int]", layer.normalized_shape), weight, bias, layer.eps)
    raise UnsupportedBase(f"a {type(layer).__name__} takes no change of its weight: leave that layer out")


def flat(tensor: Tensor) -> Tensor:
    """A tensor as (first dimension, all others)."""
    return tensor.reshape(tensor.shape[0], -1)


def zeros(*shape: int) -> Tensor:
    """A tensor of zeros in float32, which training fills."""
    return torch.zeros(shape)
