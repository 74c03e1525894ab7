"""LoRA and LoCon: a change of a weight that is the product of two narrow matrices (Hu et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import Layer, Operands, TensorShape, as_matrix, broadcast_channels, layer_forward
from velatura.overlays.deltas.product import DORA_SCALE, ProductDelta, weight_norm

LORA_UP, LORA_DOWN, LORA_MID = "lora_up.weight", "lora_down.weight", "lora_mid.weight"


class LowRankDelta(ProductDelta):
    """up @ down, times alpha over rank; of a convolution with a core between them too (Tucker's decomposition)."""

    algorithm: ClassVar[str] = "lora"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({LORA_UP, LORA_DOWN})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha", LORA_MID})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing: up begins as zeros."""
        out, *in_shape = layer.weight.shape
        down = torch.empty(rank, *in_shape)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        up = torch.zeros(out, rank, *[1] * len(in_shape[1:]))
        return cls.from_tensors({LORA_DOWN: down, LORA_UP: up, "alpha": torch.tensor(alpha)})

    @property
    def weight_shape(self) -> TensorShape:
        """The shape of a weight that it fits."""
        kernel = self.shape_of(LORA_DOWN if self.raw_tensor(LORA_MID) is None else LORA_MID)[2:]
        return self.shape_of(LORA_UP)[0], self.shape_of(LORA_DOWN)[1], *kernel

    @property
    def rank(self) -> int:
        """How many ranks it has."""
        return self.shape_of(LORA_DOWN)[0]

    def product(self) -> Tensor:
        """up @ down, at its scale."""
        up, down, core = (
            as_matrix(self.required_tensor(LORA_UP)),
            as_matrix(self.required_tensor(LORA_DOWN)),
            self.tensor(LORA_MID),
        )
        whole = up @ down if core is None else torch.einsum("oa,abyx,bi->oiyx", up, core, down)
        return whole * self.scale(up.shape[1])

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """Down, core and up at their scale, and by what rows are multiplied that have magnitudes of their own."""
        core, down, up = (
            self.tensor(LORA_MID),
            self.required_tensor(LORA_DOWN),
            as_matrix(self.required_tensor(LORA_UP)),
        )
        magnitude, mag_norm_scale = self.tensor(DORA_SCALE), None
        if magnitude is not None:
            if magnitude.shape[0] != len(up):  # magnitudes of columns have no shorter way
                return super().prepare_operands(layer, dtype)
            base_weight = layer.weight.float()
            mag_norm_scale = (
                self.mag_norm_scale(base_weight + self.product().view(base_weight.shape)).flatten().to(dtype)
            )
        kernel = [1] * (layer.weight.ndim - 2) if core is not None else layer.weight.shape[2:]
        scaled = up * self.scale(up.shape[1])
        return (
            down.reshape(len(down), -1, *kernel).to(dtype),
            scaled.to(dtype),
            None if core is None else core.to(dtype),
            mag_norm_scale,
        )

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """What is added to what a layer made, without the whole product: down, then up."""
        if len(operands) == 2:
            return super().output_delta(layer, inputs, base_output, strength, operands)
        down, up, core, mag_norm_scale = operands
        assert down is not None
        assert up is not None
        if core is None:
            down_output = layer_forward(layer, inputs, self.drop_rows(down), None)
        else:
            down_output = layer_forward(layer, torch.conv2d(inputs, self.drop_rows(down)), core, None)
        if mag_norm_scale is None:
            down_output = down_output * strength.to(
                down_output.dtype
            )  # there are fewer numbers here than in what is made
        up_output = (
            torch.conv2d(down_output, up[..., None, None]) if isinstance(layer, nn.Conv2d) else down_output @ up.T
        )
        if mag_norm_scale is None:
            return up_output
        unbiased_output = (
            base_output
            if layer.bias is None
            else base_output - broadcast_channels(layer.bias, layer).to(base_output.dtype)
        )
        return (broadcast_channels(mag_norm_scale, layer) * (unbiased_output + up_output) - unbiased_output) * strength

    def truncate_rank(self, rank: int) -> LowRankDelta:
        """Only the first ranks of it, at the same scale."""
        if self.tensor(LORA_MID) is not None or rank >= self.rank:
            return self
        tensors = {name: tensor.detach() for name, tensor in self.state_dict().items()}
        tensors |= {LORA_UP: tensors[LORA_UP][:, :rank], LORA_DOWN: tensors[LORA_DOWN][:rank]}
        if "alpha" in tensors:
            tensors["alpha"] = tensors["alpha"].float() * (rank / self.rank)
        return type(self).from_tensors(tensors)


class Dora(LowRankDelta):
    """A LoRA whose changed weight has magnitudes of its own, one a row, or one a column in older files."""

    algorithm: ClassVar[str] = "dora"
    required_suffixes: ClassVar[frozenset[str]] = LowRankDelta.required_suffixes | {DORA_SCALE}

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing: magnitudes begin as the weight's own."""
        norm = weight_norm(layer.weight.detach(), rows=True)
        lora = LowRankDelta.for_layer(layer, rank=rank, alpha=alpha)
        return cls.from_tensors(
            {DORA_SCALE: norm, **{name: tensor.detach() for name, tensor in lora.state_dict().items()}}
        )


BIAS_DIFF = "diff_b"


class BiasedLowRankDelta(LowRankDelta):
    """up @ down for the weight, and a whole difference for the bias, at the same strength."""

    algorithm: ClassVar[str] = "lora-bias"
    optional_suffixes: ClassVar[frozenset[str]] = LowRankDelta.optional_suffixes | {BIAS_DIFF}

    @classmethod
    def matches(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Whether there is a difference of a bias among a LoRA's tensors."""
        return cls.required_suffixes | {BIAS_DIFF} <= tensors.keys()

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing; where there is no bias it has nothing for that."""
        state = LowRankDelta.for_layer(layer, rank=rank, alpha=alpha).state_dict()
        tensors = {name: tensor.detach() for name, tensor in state.items()}
        return cls.from_tensors(tensors | ({} if layer.bias is None else {BIAS_DIFF: torch.zeros(layer.bias.shape)}))

    def bias_delta(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """The difference of the bias, times the strength."""
        bias_diff = self.tensor(BIAS_DIFF)
        return None if bias_diff is None else bias_diff * strength

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """What is added: what the weight's change makes of what is read, and the difference of the bias."""
        weight_output = super().output_delta(layer, inputs, base_output, strength, operands)
        bias = self.tensor(BIAS_DIFF)
        return (
            weight_output
            if bias is None
            else weight_output
            + broadcast_channels(bias.to(weight_output.dtype), layer) * strength.to(weight_output.dtype)
        )
