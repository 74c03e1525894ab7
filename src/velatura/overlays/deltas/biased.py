"""A LoRA with a change of the layer's bias beside it, as ComfyUI extracts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Layer, Ready, along
from velatura.overlays.deltas.low_rank import LowRank

BIAS = "diff_b"


class BiasedLowRank(LowRank):
    """up @ down for the weight, and a whole difference for the bias, at the same strength."""

    algorithm: ClassVar[str] = "lora-bias"
    optional: ClassVar[frozenset[str]] = LowRank.optional | {BIAS}

    @classmethod
    def knows(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Whether there is a difference of a bias among a LoRA's tensors."""
        return cls.needed | {BIAS} <= tensors.keys()

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing; where there is no bias it has nothing for that."""
        plain = LowRank.for_layer(layer, rank=rank, alpha=alpha).state_dict()
        tensors = {name: each.detach() for name, each in plain.items()}
        return cls.from_tensors(tensors | ({} if layer.bias is None else {BIAS: torch.zeros(layer.bias.shape)}))

    def bias_change(self, bias: Tensor | None, strength: float = 1.0) -> Tensor | None:  # noqa: ARG002
        """The difference of the bias, times the strength."""
        found = self.tensor(BIAS)
        return None if found is None else found * strength

    def output(self, layer: Layer, read: Tensor, made: Tensor, strength: Tensor, ready: Ready) -> Tensor:
        """What is added: what the weight's change makes of what is read, and the difference of the bias."""
        added = super().output(layer, read, made, strength, ready)
        bias = self.tensor(BIAS)
        return added if bias is None else added + along(bias.to(added.dtype), layer) * strength.to(added.dtype)
