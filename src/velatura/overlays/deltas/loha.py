"""LoHa: the elementwise (Hadamard) product of two low-rank products (Hyeon-Woo et al. 2022)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from velatura.overlays.deltas.delta import Layer, TensorShape, as_matrix
from velatura.overlays.deltas.product import DORA_SCALE, ProductDelta

FACTOR_KEYS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
CORE_KEYS = ("hada_t1", "hada_t2")


class LoHa(ProductDelta):
    """Change (a1 @ b1) * (a2 @ b2) * alpha / rank; for convolutions also with cores t1, t2 (Tucker decomposition).

    OneTrainer stores the factors of a convolution as weights of convolutions: a (out, rank, 1, 1), b (rank, in, ...).
    """

    algorithm: ClassVar[str] = "loha"
    required_suffixes: ClassVar[frozenset[str]] = frozenset(FACTOR_KEYS)
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha", DORA_SCALE, *CORE_KEYS})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """Build an untrained delta for a layer: the second product starts as zeros."""
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
        """Return the shape of a weight that it fits; it is flat if b1 is flat and cores are missing."""
        a1, b1 = self.shape_of("hada_w1_a"), self.shape_of("hada_w1_b")
        core = self.raw_tensor(CORE_KEYS[0])
        return (a1[0], *b1[1:]) if core is None else (a1[1], b1[1], *core.shape[2:])

    @property
    def rank(self) -> int:
        """Return the rank of both products."""
        return self.shape_of("hada_w1_b")[0]

    def product(self) -> Tensor:
        """Return the elementwise product of both products, scaled."""
        a1, b1, a2, b2 = (as_matrix(self.required_tensor(name)) for name in FACTOR_KEYS)
        t1, t2 = (self.tensor(name) for name in CORE_KEYS)
        if (t1 is None) != (t2 is None):
            raise ValueError("one of the two cores is missing")
        if t1 is None or t2 is None:
            return (a1 @ b1) * (a2 @ b2) * self.scale(self.rank)
        tucker = "abyx,ao,bi->oiyx"
        return torch.einsum(tucker, t1, a1, b1) * torch.einsum(tucker, t2, a2, b2) * self.scale(self.rank)
