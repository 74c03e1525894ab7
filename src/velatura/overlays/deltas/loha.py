"""LoHa: the product, entry by entry, of two products of narrow matrices (Hyeon-Woo et al. 2022)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Layer, TensorShape
from velatura.overlays.deltas.product import DORA_SCALE, ProductDelta

FACTOR_KEYS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CORE_KEYS = ("hada_t1", "hada_t2")


class LoHa(ProductDelta):
    """(a1 @ b1) * (a2 @ b2), times alpha over rank; of convolutions with cores between them too (Tucker)."""

    algorithm: ClassVar[str] = "loha"
    required_suffixes: ClassVar[frozenset[str]] = frozenset(FACTOR_KEYS)
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha", DORA_SCALE, *CORE_KEYS})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing: the second product begins as zeros."""
        out, width = layer.weight.shape[0], layer.weight[0].numel()
        factors = {
            "hada_w1_a": torch.randn(out, rank) * 0.1,
            "hada_w1_b": torch.randn(rank, width),
            "hada_w2_a": torch.zeros(out, rank),
            "hada_w2_b": torch.randn(rank, width),
        }
        return cls.from_tensors({**factors, "alpha": torch.tensor(alpha)})

    @property
    def weight_shape(self) -> TensorShape:
        """The shape of a weight that it fits, flat where it is no Tucker."""
        core, w1_a, w1_b = (
            self.tensor(CORE_KEYS[0]),
            self.required_tensor("hada_w1_a"),
            self.required_tensor("hada_w1_b"),
        )
        return (w1_a.shape[0], w1_b.shape[1]) if core is None else (w1_a.shape[1], w1_b.shape[1], *core.shape[2:])

    @property
    def rank(self) -> int:
        """How many ranks each of its products has."""
        return self.shape_of("hada_w1_b")[0]

    def product(self) -> Tensor:
        """Both products, entry by entry, at its scale."""
        a1, b1, a2, b2 = (self.required_tensor(name) for name in FACTOR_KEYS)
        t1, t2 = (self.tensor(name) for name in CORE_KEYS)
        if (t1 is None) != (t2 is None):
            raise ValueError("one core of two")
        if t1 is None or t2 is None:
            return (a1 @ b1) * (a2 @ b2) * self.scale(self.rank)
        tucker = "abyx,ao,bi->oiyx"
        return torch.einsum(tucker, t1, a1, b1) * torch.einsum(tucker, t2, a2, b2) * self.scale(self.rank)
