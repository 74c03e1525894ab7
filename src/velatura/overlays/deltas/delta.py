"""Base class of the algorithms that change one layer's weight."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from velatura.errors import BadOverlay, UnsupportedBase

Layer = nn.Linear | nn.Conv2d | nn.GroupNorm | nn.LayerNorm
LAYER_TYPES = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
TensorShape = tuple[int, ...]
Operands = tuple[Tensor | None, ...]


class DenseOperands(NamedTuple):
    """A weight, or a change of one, with its bias."""

    weight: Tensor
    bias: Tensor | None


class Delta(nn.Module):
    """Change of the weight of one layer. Its parameters and buffers have the names of kohya's and LyCORIS' files.

    It computes in float32. The change is proportional to the strength, unless the class says otherwise.

    Attributes:
        algorithm: Name of the algorithm, and key of DELTAS.
        required_suffixes, optional_suffixes: Names of its tensors in files, behind the name of the layer.
        constant_suffixes: Tensors that are not trained.
        dropout: Probability of dropping an input feature of the layer in training.
        rank_dropout: Probability of dropping a rank in training, or a row for algorithms without ranks.
        module_dropout: Probability of leaving out the whole delta in a training step.
        uses_timesteps: The change depends on the timestep, and `select_ranks` is called.
    """

    algorithm: ClassVar[str]
    required_suffixes: ClassVar[frozenset[str]]
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha"})
    constant_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha"})
    uses_timesteps: ClassVar[bool] = False

    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0

    @classmethod
    def matches(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Return True if tensors with these suffixes belong to this algorithm; DELTAS is tried in order."""
        return cls.required_suffixes <= tensors.keys()

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Build a delta from a file's tensors of one layer, by their suffixes.

        Raises:
            BadOverlay: If tensors are missing or unknown, or their shapes do not fit each other.
        """
        if missing := cls.required_suffixes - tensors.keys():
            raise BadOverlay(f"{cls.algorithm} lacks {min(missing)}: the file is incomplete, so download it again")
        if unknown := tensors.keys() - cls.required_suffixes - cls.optional_suffixes:
            raise BadOverlay(f"{cls.algorithm} has no tensor {min(unknown)[:40]}: the file is of another algorithm")
        delta = cls()
        for suffix, tensor in tensors.items():
            delta.add_tensor(suffix, tensor)
        if mismatch := _find_mismatch(cls, delta.signature, None):
            raise BadOverlay(
                f"{cls.algorithm} has tensors that do not fit each other: {mismatch}; the file is damaged, so "
                "download it again"
            )
        return delta

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """Build an untrained delta for a layer; it changes exactly nothing yet."""
        raise NotImplementedError

    @property
    def weight_shape(self) -> TensorShape:
        """Return the shape of a weight that it fits; sizes that do not follow from its tensors are guessed."""
        raise NotImplementedError

    @property
    def needs_weight(self) -> bool:
        """Return True if the change depends on the weight or the bias of the layer."""
        return True

    @property
    def rank(self) -> int | None:
        """Return the rank, or None if the algorithm has none."""
        return None

    def set_dropouts(self, dropout: float, rank_dropout: float, module_dropout: float) -> None:
        """Set the probabilities that are used in train mode."""
        self.dropout, self.rank_dropout, self.module_dropout = dropout, rank_dropout, module_dropout

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of a weight at a strength, in the weight's shape, in float32."""
        raise NotImplementedError

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """Return the change of the bias at a strength, in float32, or None."""
        return None

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """Return the tensors for output_delta, which stay the same until the delta or the layer changes."""
        change, bias = self.weight_delta(layer.weight), self.bias_delta(layer.bias)
        return DenseOperands(change.to(dtype), None if bias is None else bias.to(dtype))

    def output_delta(
        self,
        layer: Layer,
        inputs: Tensor,
        base_output: Tensor,  # noqa: ARG002
        strength: Tensor,
        operands: Operands,
    ) -> Tensor:
        """Return the change of a layer's output.

        Args:
            layer: The layer.
            inputs: What the layer read.
            base_output: The layer's output without any change.
            strength: 0-d, or (rows, 1, ...).
            operands: The result of prepare_operands.
        """
        assert isinstance(operands, DenseOperands)
        return layer_forward(layer, inputs, self.drop_rows(operands.weight), operands.bias) * strength

    def select_ranks(self, operands: Operands, timesteps: Tensor) -> Operands:
        """Return the operands at timesteps (rows,), or () for all rows; only if the delta uses timesteps."""
        raise NotImplementedError

    def is_compatible(self, weight: Tensor) -> bool:
        """Return True if it can be added to a weight of this shape."""
        return not _find_mismatch(type(self), self.signature, tuple(weight.shape))

    def truncate_rank(self, rank: int) -> Delta:  # noqa: ARG002
        """Return a delta with only the first ranks, at the same scale; itself if the algorithm does not allow it."""
        return self

    def add_tensor(self, suffix: str, tensor: Tensor) -> None:
        """Register a tensor as a parameter or a buffer under its suffix in files."""
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
        """Return a tensor in float32, or None if the delta lacks it."""
        raw = self.raw_tensor(suffix)
        return None if raw is None else raw.float()

    def raw_tensor(self, suffix: str) -> Tensor | None:
        """Return a tensor in its own dtype, or None if the delta lacks it."""
        value: object = self
        for name in suffix.split("."):
            value = getattr(value, name, None)
        return value if isinstance(value, Tensor) else None

    def shape_of(self, suffix: str) -> torch.Size:
        """Return the shape of a tensor that the delta must have."""
        raw = self.raw_tensor(suffix)
        assert raw is not None
        return raw.shape

    def required_tensor(self, suffix: str) -> Tensor:
        """Return a tensor that the delta must have, in float32."""
        tensor = self.tensor(suffix)
        assert tensor is not None
        return tensor

    def scale(self, rank: int) -> Tensor | float:
        """Return alpha / rank, or 1 without an alpha."""
        alpha = self.tensor("alpha")
        return 1.0 if alpha is None else alpha / rank

    def drop_rows(self, rows: Tensor, probability: float | None = None) -> Tensor:
        """Apply dropout to whole rows, in train mode only; the other rows are scaled up."""
        drop_probability = self.rank_dropout if probability is None else probability
        if not (self.training and drop_probability):
            return rows
        mask = torch.rand(len(rows), device=rows.device) >= drop_probability
        return rows * (mask / (1 - drop_probability)).to(rows.dtype).view(-1, *(1,) * (rows.ndim - 1))

    @property
    def tensors(self) -> list[Tensor]:
        """Return its current tensors. Their places are found once and cached, as every step asks for them."""
        slots: list[tuple[dict[str, Tensor | None], str]] | None = self.__dict__.get("_slots")
        if slots is None:
            stores = [vars(module)[attribute] for module in self.modules() for attribute in ("_parameters", "_buffers")]
            slots = self.__dict__["_slots"] = [(store, name) for store in stores for name in store]
        return [tensor for owner, name in slots if (tensor := owner[name]) is not None]

    @property
    def needs_grad(self) -> bool:
        """Return True if one of its tensors requires gradients."""
        return any(tensor.requires_grad for tensor in self.tensors)

    @property
    def signature(self) -> tuple[tuple[str, TensorShape], ...]:
        """Return the names and shapes of its tensors."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(self.state_dict().items()))


def layer_forward(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a layer's output with another weight and bias."""
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
    raise UnsupportedBase(f"the weight of a {type(layer).__name__} cannot be changed: leave that layer out")


def as_matrix(tensor: Tensor) -> Tensor:
    """Flatten a tensor to (first dimension, all others)."""
    return tensor.flatten(1)


def reshape_to_weight(change: Tensor, weight: Tensor) -> Tensor:
    """Reshape a change, which may be flat, to its weight; raises ValueError if the sizes differ."""
    if change.shape[0] != weight.shape[0] or change.numel() != weight.numel():
        raise ValueError(f"{tuple(change.shape)} against {tuple(weight.shape)}")
    return change.reshape(weight.shape)


def multiply(change: Tensor, strength: float) -> Tensor:
    """Multiply a change by a strength; at 1 return the same tensor."""
    return change if strength == 1 else change * strength


def broadcast_channels(values: Tensor, layer: nn.Module) -> Tensor:
    """Reshape one value for each output feature so that it broadcasts: (features, 1, 1) for a convolution."""
    return values.view(-1, 1, 1) if isinstance(layer, nn.Conv2d) else values


def subtract_bias(layer: Layer, base_output: Tensor) -> Tensor:
    """Subtract a layer's bias from its output."""
    if layer.bias is None:
        return base_output
    return base_output - broadcast_channels(layer.bias.to(base_output.dtype), layer)


@cache
def _find_mismatch(
    delta_class: type[Delta], signature: tuple[tuple[str, TensorShape], ...], weight_shape: TensorShape | None
) -> str:
    """Return why tensors of these shapes cannot change a weight, or "" if they can.

    The computation is tried on the meta device, where tensors have shapes and no values.

    Args:
        delta_class: The algorithm.
        signature: Names and shapes of the tensors.
        weight_shape: Shape of the weight; None for a shape that they fit.
    """
    if not signature or any(0 in shape for _, shape in signature):
        return "a tensor is empty"
    delta = delta_class()
    for name, shape in signature:
        delta.add_tensor(name, torch.empty(shape, device="meta"))
    if "alpha" in dict(signature) and delta.required_tensor("alpha").numel() != 1:
        return "alpha is not one number"
    try:
        weight = torch.empty(weight_shape or delta.weight_shape, device="meta")
        delta.weight_delta(weight)
        bias = delta.bias_delta(torch.empty(weight.shape[0], device="meta"))
    except (RuntimeError, ValueError, IndexError) as error:
        return str(error).splitlines()[0][:80]
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"{tuple(bias.shape)} of a bias against {weight.shape[0]} rows"
    return ""
