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
LAYERS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
Shape = tuple[int, ...]
Ready = tuple[Tensor | None, ...]


class Delta(nn.Module):
    """What is added to the weight of one layer; its parameters and buffers are named as in kohya's and LyCORIS' files.

    needed, optional: the suffixes of its tensors; constants: those of them that are not trained. All is reckoned in
    float32. What is added is proportional to the strength, unless its class says otherwise.
    dropout: while training, of what the layer reads; rank_dropout: of its ranks, or of rows where it has none;
    module_dropout: of all of it. Those are probabilities.
    """

    algorithm: ClassVar[str]
    needed: ClassVar[frozenset[str]]
    optional: ClassVar[frozenset[str]] = frozenset({"alpha"})
    constants: ClassVar[frozenset[str]] = frozenset({"alpha"})

    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0

    @classmethod
    def knows(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Whether tensors under these suffixes are of this algorithm; the rows of DELTAS are asked in their order."""
        return cls.needed <= tensors.keys()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Build it of the tensors that a file has for one layer, by their suffixes; raises BadOverlay."""
        if lacking := cls.needed - tensors.keys():
            raise BadOverlay(f"{cls.algorithm} lacks {min(lacking)}: it is cut short, so fetch it again")
        if strange := tensors.keys() - cls.needed - cls.optional:
            raise BadOverlay(f"{cls.algorithm} has no place for {min(strange)[:40]}: it is misdescribed")
        made = cls()
        for suffix, tensor in tensors.items():
            made.put(suffix, tensor)
        if trouble := _trouble(cls, made.signature, None):
            raise BadOverlay(f"{cls.algorithm} has tensors that do not fit each other: {trouble}; it is damaged")
        return made

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing."""
        raise NotImplementedError

    @property
    def shape(self) -> Shape:
        """The shape of a weight that it fits; what it does not tell is guessed."""
        raise NotImplementedError

    @property
    def reads_weight(self) -> bool:
        """Whether what it adds depends on the weight, or the bias, of its layer."""
        return True

    @property
    def rank(self) -> int | None:
        """How many ranks it has, or None where that says nothing."""
        return None

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32."""
        raise NotImplementedError

    def bias_change(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """What is added to the bias at a strength, in float32, or None."""
        return None

    def ready(self, layer: Layer, dtype: torch.dtype) -> Ready:
        """What output needs of a layer's weight and of its own, which stays the same until one of them changes."""
        change, bias = self.change(layer.weight), self.bias_change(layer.bias)
        return change.to(dtype), None if bias is None else bias.to(dtype)

    def output(self, layer: Layer, read: Tensor, made: Tensor, strength: Tensor, ready: Ready) -> Tensor:  # noqa: ARG002
        """What is added to what a layer made of what it read; strength: 0-d, or (rows, 1, ...)."""
        change, bias = ready
        assert change is not None
        return computed(layer, read, self.thinned(change), bias) * strength

    def fits(self, weight: Tensor) -> bool:
        """Whether it can be added to a weight."""
        return not _trouble(type(self), self.signature, tuple(weight.shape))

    def first_ranks(self, count: int) -> Delta:  # noqa: ARG002
        """Only the first ranks of it, at the same scale; itself where it has none to choose among."""
        return self

    def put(self, suffix: str, tensor: Tensor) -> None:
        """Take a tensor in under the suffix that it has in files."""
        *path, name = suffix.split(".")
        owner: nn.Module = self
        self.__dict__.pop("_slots", None)
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
        found = self.kept(suffix)
        return None if found is None else found.float()

    def kept(self, suffix: str) -> Tensor | None:
        """One of its tensors as it is, or None where it lacks it: shapes need no float32."""
        found: object = self
        for each in suffix.split("."):
            found = getattr(found, each, None)
        return found if isinstance(found, Tensor) else None

    def shape_of(self, suffix: str) -> torch.Size:
        """The shape of one of its tensors that cannot lack."""
        found = self.kept(suffix)
        assert found is not None
        return found.shape

    def of(self, suffix: str) -> Tensor:
        """One of its tensors that cannot lack, in float32."""
        found = self.tensor(suffix)
        assert found is not None
        return found

    def scale(self, rank: int) -> Tensor | float:
        """Alpha over rank, or 1 where there is no alpha."""
        alpha = self.tensor("alpha")
        return 1.0 if alpha is None else alpha / rank

    def thinned(self, rows: Tensor, probability: float | None = None) -> Tensor:
        """While training, rows without those that dropout takes, the others made stronger for it."""
        drop = self.rank_dropout if probability is None else probability
        if not (self.training and drop):
            return rows
        kept = torch.rand(len(rows), device=rows.device) >= drop
        return rows * (kept / (1 - drop)).to(rows.dtype).view(-1, *(1,) * (rows.ndim - 1))

    @property
    def tensors(self) -> list[Tensor]:
        """All that it is made of, as it is now; where it is kept is looked for once, as every step asks."""
        slots: list[tuple[dict[str, Tensor | None], str]] | None = self.__dict__.get("_slots")
        if slots is None:
            kept = [vars(module)[each] for module in self.modules() for each in ("_parameters", "_buffers")]
            slots = self.__dict__["_slots"] = [(each, name) for each in kept for name in each]
        return [each for owner, name in slots if (each := owner[name]) is not None]

    @property
    def is_trained(self) -> bool:
        """Whether gradients are asked of it."""
        return any(each.requires_grad for each in self.tensors)

    @property
    def signature(self) -> tuple[tuple[str, Shape], ...]:
        """Its tensors' names and shapes."""
        return tuple((name, tuple(each.shape)) for name, each in sorted(self.state_dict().items()))


def computed(layer: nn.Module, read: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a layer would make with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return functional.linear(read, weight, bias)
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(read, weight, bias)  # pyright: ignore[reportPrivateUsage]
    if isinstance(layer, nn.GroupNorm):
        if torch.is_grad_enabled() and not read.requires_grad:  # torch 2.13 crashes in this norm's backward otherwise
            read = read.contiguous()
        return functional.group_norm(read, layer.num_groups, weight, bias, layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(read, cast("list[int]", layer.normalized_shape), weight, bias, layer.eps)
    raise UnsupportedBase(f"a {type(layer).__name__} takes no change of its weight: leave that layer out")


def flat(tensor: Tensor) -> Tensor:
    """A tensor as (first dimension, all others)."""
    return tensor.flatten(1)


def shaped(change: Tensor, weight: Tensor) -> Tensor:
    """A change in the shape of its weight, as which it may be flat; raises ValueError where it is of another weight."""
    if change.shape[0] != weight.shape[0] or change.numel() != weight.numel():
        raise ValueError(f"{tuple(change.shape)} against {tuple(weight.shape)}")
    return change.reshape(weight.shape)


def times(change: Tensor, strength: float) -> Tensor:
    """A change at a strength, at 1 the very same tensor."""
    return change if strength == 1 else change * strength


def along(values: Tensor, layer: nn.Module) -> Tensor:
    """One value a feature, so that it multiplies what a layer makes: of a convolution (features, 1, 1)."""
    return values.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else values


@cache
def _trouble(kind: type[Delta], signature: tuple[tuple[str, Shape], ...], weight: Shape | None) -> str:
    """Why tensors of these shapes make no change of a weight, of one that they fit if none is given; else "".

    It is tried on the meta device, where tensors have shapes and no values.
    """
    if not signature or any(0 in shape for _, shape in signature):
        return "there is nothing in it"
    delta = kind()
    for name, shape in signature:
        delta.put(name, torch.empty(shape, device="meta"))
    if "alpha" in dict(signature) and delta.of("alpha").numel() != 1:
        return "alpha is not one number"
    try:
        wanted = torch.empty(weight or delta.shape, device="meta")
        delta.change(wanted)
    except (RuntimeError, ValueError, IndexError) as error:
        return str(error).splitlines()[0][:80]
    return ""
