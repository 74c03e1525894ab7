"""LoRA, LoCon and DoRA: the change of a weight is a low-rank product (Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import (
    DenseOperands,
    Layer,
    Operands,
    TensorShape,
    as_matrix,
    broadcast_channels,
    layer_forward,
    subtract_bias,
)
from velatura.overlays.deltas.product import DORA_SCALE, ProductDelta, weight_norm

LORA_UP, LORA_DOWN, LORA_MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"
BIAS_DIFF = "diff_b"


class LowRankOperands(NamedTuple):
    """Factors of a low-rank product.

    Attributes:
        down: (rank, in, ...), the weight of the first layer.
        up: (out, rank), scaled.
        core: (rank, rank, height, width) between them, or None.
        mag_norm_scale: (out,), DoRA's g / |V| for the rows, or None.
    """

    down: Tensor
    up: Tensor
    core: Tensor | None
    mag_norm_scale: Tensor | None


class LowRankDelta(ProductDelta):
    """Change up @ down * alpha / rank; for convolutions also with a core between them (Tucker decomposition)."""

    algorithm: ClassVar[str] = "lora"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({LORA_UP, LORA_DOWN})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha", LORA_MID})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """Build an untrained delta for a layer: up starts as zeros."""
        out, *in_shape = layer.weight.shape
        down = torch.empty(rank, *in_shape)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        up = torch.zeros(out, rank, *[1] * len(in_shape[1:]))
        return cls.from_tensors({LORA_DOWN: down, LORA_UP: up, "alpha": torch.tensor(alpha)})

    @property
    def weight_shape(self) -> TensorShape:
        """Return the shape of a weight that it fits."""
        kernel = self.shape_of(LORA_DOWN if self.raw_tensor(LORA_MID) is None else LORA_MID)[2:]
        return self.shape_of(LORA_UP)[0], self.shape_of(LORA_DOWN)[1], *kernel

    @property
    def rank(self) -> int:
        """Return the rank."""
        return self.shape_of(LORA_DOWN)[0]

    def product(self) -> Tensor:
        """Return up @ down, scaled."""
        up, down = as_matrix(self.required_tensor(LORA_UP)), as_matrix(self.required_tensor(LORA_DOWN))
        core = self._core()
        whole = up @ down if core is None else torch.einsum("oa,abyx,bi->oiyx", up, core, down)
        return whole if whole.is_meta else whole * self.scale(up.shape[1])  # as in weight_delta

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """Return the factors; for DoRA with magnitudes of columns the full change."""
        up, down = as_matrix(self.required_tensor(LORA_UP)), self.required_tensor(LORA_DOWN)
        core, magnitude = self._core(), self.tensor(DORA_SCALE)
        mag_norm_scale = None
        if magnitude is not None:
            if magnitude.shape[0] != len(up):
                return super().prepare_operands(layer, dtype)
            base_weight = layer.weight.float()
            changed_weight = base_weight + self.product().view(base_weight.shape)
            mag_norm_scale = self.mag_norm_scale(changed_weight).flatten().to(dtype)
        if core is not None and not isinstance(layer, nn.Conv2d):
            down, core = torch.einsum("abyx,bi->aiyx", core, as_matrix(down)), None
        kernel = [1] * (layer.weight.ndim - 2) if core is not None else layer.weight.shape[2:]
        return LowRankOperands(
            down=down.reshape(len(down), -1, *kernel).to(dtype),
            up=(up * self.scale(up.shape[1])).to(dtype),
            core=None if core is None else core.to(dtype),
            mag_norm_scale=mag_norm_scale,
        )

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """Return the change of a layer's output without the full product: down, then up."""
        if isinstance(operands, DenseOperands):
            return super().output_delta(layer, inputs, base_output, strength, operands)
        assert isinstance(operands, LowRankOperands)
        down, up, core, mag_norm_scale = operands
        if core is None:
            down_output = layer_forward(layer, inputs, self.drop_rows(down), None)
        else:
            down_output = layer_forward(layer, torch.conv2d(inputs, self.drop_rows(down)), core, None)
        if mag_norm_scale is None:
            down_output = down_output * strength.to(down_output.dtype)  # smaller here than after up
        if isinstance(layer, nn.Conv2d):
            up_output = torch.conv2d(down_output, up[..., None, None])
        else:
            up_output = down_output @ up.T
        if mag_norm_scale is None:
            return up_output
        unbiased_output = subtract_bias(layer, base_output)
        return (broadcast_channels(mag_norm_scale, layer) * (unbiased_output + up_output) - unbiased_output) * strength

    def _core(self) -> Tensor | None:
        """Return the core, (rank, rank, height, width), or None; some files have (rank, rank) where the kernel is 1."""
        core = self.tensor(LORA_MID)
        return core if core is None or core.ndim != 2 else core[..., None, None]

    def truncate_rank(self, rank: int) -> LowRankDelta:
        """Return a delta with only the first ranks, at the same scale; with a core, itself."""
        if self.tensor(LORA_MID) is not None or rank >= self.rank:
            return self
        tensors = {name: tensor.detach() for name, tensor in self.state_dict().items()}
        tensors |= {LORA_UP: tensors[LORA_UP][:, :rank], LORA_DOWN: tensors[LORA_DOWN][:rank]}
        if "alpha" in tensors:
            tensors["alpha"] = tensors["alpha"].float() * (rank / self.rank)
        return type(self).from_tensors(tensors)


class Dora(LowRankDelta):
    """DoRA: a LoRA with magnitudes for the rows of the changed weight, or for its columns in older files."""

    algorithm: ClassVar[str] = "dora"
    required_suffixes: ClassVar[frozenset[str]] = LowRankDelta.required_suffixes | {DORA_SCALE}

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """Build an untrained delta for a layer: up starts as zeros, the magnitudes as those of the weight."""
        norm = weight_norm(layer.weight.detach(), rows=True)
        state = LowRankDelta.for_layer(layer, rank=rank, alpha=alpha).state_dict()
        return cls.from_tensors({DORA_SCALE: norm, **{name: tensor.detach() for name, tensor in state.items()}})


class BiasedLowRankDelta(LowRankDelta):
    """LoRA with a full difference of the bias."""

    algorithm: ClassVar[str] = "lora-bias"
    optional_suffixes: ClassVar[frozenset[str]] = LowRankDelta.optional_suffixes | {BIAS_DIFF}

    @classmethod
    def matches(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Return True if a LoRA's tensors include a difference of the bias."""
        return cls.required_suffixes | {BIAS_DIFF} <= tensors.keys()

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """Build an untrained delta for a layer; the difference of the bias, if the layer has one, starts as zeros."""
        state = LowRankDelta.for_layer(layer, rank=rank, alpha=alpha).state_dict()
        tensors = {name: tensor.detach() for name, tensor in state.items()}
        return cls.from_tensors(tensors | ({} if layer.bias is None else {BIAS_DIFF: torch.zeros(layer.bias.shape)}))

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """Return the difference of the bias, times the strength."""
        bias_diff = self.tensor(BIAS_DIFF)
        return None if bias_diff is None else bias_diff * strength

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """Return the change of a layer's output by both."""
        weight_output = super().output_delta(layer, inputs, base_output, strength, operands)
        bias = self.tensor(BIAS_DIFF)
        if bias is None:
            return weight_output
        bias_output = broadcast_channels(bias.to(weight_output.dtype), layer)
        return weight_output + bias_output * strength.to(weight_output.dtype)
