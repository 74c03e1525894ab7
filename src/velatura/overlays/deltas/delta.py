"""A change of one layer's weight, whatever way it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from velatura.errors import BadOverlay, UnsupportedBase

Layer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
LAYER_TYPES = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
TensorShape = tuple[int, ...]
Operands = tuple[Tensor | None, ...]


class Delta(nn.Module):
    """What is added to the weight of one layer; its parameters and buffers are named as in kohya's and LyCORIS' files.

    needed, optional: the suffixes of its tensors; constants: those of them that are not trained. All is reckoned in
    float32. What is added is proportional to the strength, unless its class says otherwise.
    dropout: while training, of what the layer reads; rank_dropout: of its ranks, or of rows where it has none;
    module_dropout: of all of it. Those are probabilities.
    """

    algorithm: ClassVar[str]
    required_suffixes: ClassVar[frozenset[str]]
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha"})
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha"})

    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0

    @classmethod
    def matches(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Whether tensors under these suffixes are of this algorithm; the rows of DELTAS are asked in their order."""
        return cls.required_suffixes <= tensors.keys()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Build it of the tensors that a file has for one layer, by their suffixes; raises BadOverlay."""
        if missing := cls.required_suffixes - tensors.keys():
            raise BadOverlay(f"{cls.algorithm} lacks {min(missing)}: it is cut short, so fetch it again")
        if unknown := tensors.keys() - cls.required_suffixes - cls.optional_suffixes:
            raise BadOverlay(f"{cls.algorithm} has no place for {min(unknown)[:40]}: it is misdescribed")
        delta = cls()
        for suffix, tensor in tensors.items():
            delta.add_tensor(suffix, tensor)
        if mismatch := _find_mismatch(cls, delta.signature, None):
            raise BadOverlay(f"{cls.algorithm} has tensors that do not fit each other: {mismatch}; it is damaged")
        return delta

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing."""
        raise NotImplementedError

    @property
    def weight_shape(self) -> TensorShape:
        """The shape of a weight that it fits; what it does not tell is guessed."""
        raise NotImplementedError

    @property
    def needs_weight(self) -> bool:
        """Whether what it adds depends on the weight, or the bias, of its layer."""
        return True

    @property
    def rank(self) -> int | None:
        """How many ranks it has, or None where that says nothing."""
        return None

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32."""
        raise NotImplementedError

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """What is added to the bias at a strength, in float32, or None."""
        return None

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """What output needs of a layer's weight and of its own, which stays the same until one of them changes."""
        change, bias = self.weight_delta(layer.weight), self.bias_delta(layer.bias)
        return change.to(dtype), None if bias is None else bias.to(dtype)

    def output_delta(
        self,
        layer: Layer,
        inputs: Tensor,
        base_output: Tensor,  # noqa: ARG002
        strength: Tensor,
        operands: Operands,
    ) -> Tensor:
        """What is added to what a layer made of what it read; strength: 0-d, or (rows, 1, ...)."""
        change, bias = operands
        assert change is not None
        return layer_forward(layer, inputs, self.drop_rows(change), bias) * strength

    def is_compatible(self, weight: Tensor) -> bool:
        """Whether it can be added to a weight."""
        return not _find_mismatch(type(self), self.signature, tuple(weight.shape))

    def truncate_rank(self, rank: int) -> Delta:  # noqa: ARG002
        """Only the first ranks of it, at the same scale; itself where it has none to choose among."""
        return self

    def add_tensor(self, suffix: str, tensor: Tensor) -> None:
        """Take a tensor in under the suffix that it has in files."""
        *path, name = suffix.split(".")
        owner: nn.Module = self
        self.__dict__.pop("_slots", None)
        for child in path:
            if child not in dict(owner.named_children()):
                owner.add_module(child, nn.Module())
            owner = owner.get_submodule(child)
        if suffix in self.constant_suffixes:
            owner.register_buffer(name, tensor)
        else:
            owner.register_parameter(name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))

    def tensor(self, suffix: str) -> Tensor | None:
        """One of its tensors in float32, or None where it lacks it."""
        raw = self.raw_tensor(suffix)
        return None if raw is None else raw.float()

    def raw_tensor(self, suffix: str) -> Tensor | None:
        """One of its tensors as it is, or None where it lacks it: shapes need no float32."""
        value: object = self
        for name in suffix.split("."):
            value = getattr(value, name, None)
        return value if isinstance(value, Tensor) else None

    def shape_of(self, suffix: str) -> torch.Size:
        """The shape of one of its tensors that cannot lack."""
        raw = self.raw_tensor(suffix)
        assert raw is not None
        return raw.shape

    def required_tensor(self, suffix: str) -> Tensor:
        """One of its tensors that cannot lack, in float32."""
        tensor = self.tensor(suffix)
        assert tensor is not None
        return tensor

    def scale(self, rank: int) -> Tensor | float:
        """Alpha over rank, or 1 where there is no alpha."""
        alpha = self.tensor("alpha")
        return 1.0 if alpha is None else alpha / rank

    def drop_rows(self, rows: Tensor, probability: float | None = None) -> Tensor:
        """While training, rows without those that dropout takes, the others made stronger for it."""
        drop_probability = self.rank_dropout if probability is None else probability
        if not (self.training and drop_probability):
            return rows
        mask = torch.rand(len(rows), device=rows.device) >= drop_probability
        return rows * (mask / (1 - drop_probability)).to(rows.dtype).view(-1, *(1,) * (rows.ndim - 1))

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of, as it is now; where it is kept is looked for once, as every step asks."""
        slots: list[tuple[dict[str, Tensor | None], str]] | None = self.__dict__.get("_slots")
        if slots is None:
            stores = [vars(module)[attribute] for module in self.modules() for attribute in ("_parameters", "_buffers")]
            slots = self.__dict__["_slots"] = [(store, name) for store in stores for name in store]
        return [tensor for owner, name in slots if (tensor := owner[name]) is not None]

    @property
    def needs_grad(self) -> bool:
        """Whether gradients are asked of it."""
        return any(tensor.requires_grad for tensor in self.tensors)

    @property
    def signature(self) -> tuple[tuple[str, TensorShape], ...]:
        """Its tensors' names and shapes."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(self.state_dict().items()))


def layer_forward(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer would make with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear(inputs, weight, bias)
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(inputs, weight, bias)  # pyright: ignore[reportPrivateUsage]
    if isinstance(layer, nn.GroupNorm):
        if torch.is_grad_enabled() and not inputs.requires_grad:  # torch 2.13 crashes in this norm's backward otherwise
            inputs = inputs.contiguous()
        return functional.group_norm(inputs, layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(inputs, cast("list[int]", layer.normalized_shape), weight, bias, layer.eps)
    raise UnsupportedBase(f"a {type(layer).__name__} takes no change of its weight: leave that layer out")


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor as (first dimension, all others)."""
    return tensor.flatten(1)


def reshape_to_weight(change: Tensor, weight: Tensor) -> Tensor:
    """A change in the shape of its weight, as which it may be flat; raises ValueError where it is of another weight."""
    if change.shape[0] != weight.shape[0] or change.numel() != weight.numel():
        raise ValueError(f"{tuple(change.shape)} against {tuple(weight.shape)}")
    return change.reshape(weight.shape)


def multiply(change: Tensor, strength: float) -> Tensor:
    """A change at a strength, at 1 the very same tensor."""
    return change if strength == 1 else change * strength


def broadcast_channels(values: Tensor, layer: nn.Module) -> Tensor:
    """One value a feature, so that it multiplies what a layer makes: of a convolution (features, 1, 1)."""
    return values.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else values


@cache
def _find_mismatch(
    delta_class: type[Delta], signature: tuple[tuple[str, TensorShape], ...], weight_shape: TensorShape | None
) -> str:
    """Why tensors of these shapes make no change of a weight, of one that they fit if none is given; else "".

    It is tried on the meta device, where tensors have shapes and no values.
    """
    if not signature or any(0 in shape for _, shape in signature):
        return "there is nothing in it"
    delta = delta_class()
    for name, shape in signature:
        delta.add_tensor(name, torch.empty(shape, device="meta"))
    if "alpha" in dict(signature) and delta.required_tensor("alpha").numel() != 1:
        return "alpha is not one number"
    try:
        weight = torch.empty(weight_shape or delta.weight_shape, device="meta")
        delta.weight_delta(weight)
    except (RuntimeError, ValueError, IndexError) as error:
        return str(error).splitlines()[0][:80]
    return ""
