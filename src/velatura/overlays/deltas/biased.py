"""A LoRA with a change of the layer's bias beside it, as ComfyUI extracts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Layer, Operands, broadcast_channels
from velatura.overlays.deltas.low_rank import LowRankDelta

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
