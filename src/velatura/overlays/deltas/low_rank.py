"""LoRA and LoCon: a change of a weight that is the product of two narrow matrices (Hu et al. 2021)."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import Layer, Ready, Shape, along, computed, flat
from velatura.overlays.deltas.product import MAGNITUDE, Product, magnitudes

UP, DOWN, CORE = "lora_up.weight", "lora_down.weight", "lora_mid.weight"


class LowRank(Product):
    """up @ down, times alpha over rank; of a convolution with a core between them too (Tucker's decomposition)."""

    algorithm: ClassVar[str] = "lora"
    needed: ClassVar[frozenset[str]] = frozenset({UP, DOWN})
    optional: ClassVar[frozenset[str]] = frozenset({"alpha", CORE})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing: up begins as zeros."""
        out, *into = layer.weight.shape
        down = torch.empty(rank, *into)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        up = torch.zeros(out, rank, *[1] * len(into[1:]))
        return cls.from_tensors({DOWN: down, UP: up, "alpha": torch.tensor(alpha)})

    @property
    def shape(self) -> Shape:
        """The shape of a weight that it fits."""
        kernel = self.shape_of(DOWN if self.kept(CORE) is None else CORE)[2:]
        return self.shape_of(UP)[0], self.shape_of(DOWN)[1], *kernel

    @property
    def rank(self) -> int:
        """How many ranks it has."""
        return self.shape_of(DOWN)[0]

    def product(self) -> Tensor:
        """up @ down, at its scale."""
        up, down, core = flat(self.of(UP)), flat(self.of(DOWN)), self.tensor(CORE)
        whole = up @ down if core is None else torch.einsum("oa,abyx,bi->oiyx", up, core, down)
        return whole * self.scale(up.shape[1])

    def ready(self, layer: Layer, dtype: torch.dtype) -> Ready:
        """Down, core and up at their scale, and by what rows are multiplied that have magnitudes of their own."""
        core, down, up = self.tensor(CORE), self.of(DOWN), flat(self.of(UP))
        wanted, factor = self.tensor(MAGNITUDE), None
        if wanted is not None:
            if wanted.shape[0] != len(up):  # magnitudes of columns have no shorter way
                return super().ready(layer, dtype)
            base = layer.weight.float()
            factor = self.factor(base + self.product().view(base.shape)).flatten().to(dtype)
        kernel = [1] * (layer.weight.ndim - 2) if core is not None else layer.weight.shape[2:]
        scaled = up * self.scale(up.shape[1])
        return (
            down.reshape(len(down), -1, *kernel).to(dtype),
            scaled.to(dtype),
            None if core is None else core.to(dtype),
            factor,
        )

    def output(self, layer: Layer, read: Tensor, made: Tensor, strength: Tensor, ready: Ready) -> Tensor:
        """What is added to what a layer made, without the whole product: down, then up."""
        if len(ready) == 2:
            return super().output(layer, read, made, strength, ready)
        down, up, core, factor = ready
        assert down is not None
        assert up is not None
        if core is None:
            narrow = computed(layer, read, self.thinned(down), None)
        else:
            narrow = computed(layer, torch.conv2d(read, self.thinned(down)), core, None)
        if factor is None:
            narrow = narrow * strength.to(narrow.dtype)  # there are fewer numbers here than in what is made
        wide = torch.conv2d(narrow, up[..., None, None]) if isinstance(layer, nn.Conv2d) else narrow @ up.T
        if factor is None:
            return wide
        own = made if layer.bias is None else made - along(layer.bias, layer).to(made.dtype)
        return (along(factor, layer) * (own + wide) - own) * strength

    def first_ranks(self, count: int) -> LowRank:
        """Only the first ranks of it, at the same scale."""
        if self.tensor(CORE) is not None or count >= self.rank:
            return self
        kept = {name: each.detach() for name, each in self.state_dict().items()}
        kept |= {UP: kept[UP][:, :count], DOWN: kept[DOWN][:count]}
        if "alpha" in kept:
            kept["alpha"] = kept["alpha"].float() * (count / self.rank)
        return type(self).from_tensors(kept)


class Dora(LowRank):
    """A LoRA whose changed weight has magnitudes of its own, one a row, or one a column in older files."""

    algorithm: ClassVar[str] = "dora"
    needed: ClassVar[frozenset[str]] = LowRank.needed | {MAGNITUDE}

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing: magnitudes begin as the weight's own."""
        norm = magnitudes(layer.weight.detach(), rows=True)
        plain = LowRank.for_layer(layer, rank=rank, alpha=alpha)
        return cls.from_tensors({MAGNITUDE: norm, **{name: each.detach() for name, each in plain.state_dict().items()}})
