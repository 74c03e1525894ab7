"""LoRA and LoCon: a change of a weight that is the product of two narrow matrices (Hu et al. 2021)."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import Delta, Layer, computed, flat, zeros


class LowRank(Delta):
    """up @ down, times alpha over rank; of a convolution with a core between them too (Tucker's decomposition)."""

    algorithm: ClassVar[str] = "lora"
    tell: ClassVar[str] = "lora_up.weight"

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing: up begins as zeros."""
        out, into, *kernel = layer.weight.shape
        ones = [1] * len(kernel)
        down = torch.empty(rank, into, *kernel)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        up = zeros(out, rank, *ones)
        return cls.from_tensors({"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)})

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32."""
        up, down, core = flat(self.of("lora_up.weight")), self.of("lora_down.weight"), self.tensor("lora_mid.weight")
        if core is not None:
            product = torch.einsum("oa,abyx,bi->oiyx", up, core, flat(down))
        else:
            product = up @ flat(down)
        return product.reshape(weight.shape) * (self.scale(up.shape[1]) * strength)

    def output(self, layer: Layer, read: Tensor, made: Tensor) -> Tensor:
        """What is added to what a layer made, without the whole product: down, then up."""
        up, down = self.of("lora_up.weight"), self.of("lora_down.weight")
        if self.tensor("lora_mid.weight") is not None:
            return super().output(layer, read, made)
        narrow = computed(layer, read, down.reshape(down.shape[0], *layer.weight.shape[1:]), None)
        up = flat(up) * self.scale(up.shape[1])
        if isinstance(layer, nn.Conv2d):
            return torch.conv2d(narrow, up.to(read.dtype)[..., None, None])
        return narrow @ up.to(read.dtype).T
