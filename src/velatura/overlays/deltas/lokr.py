"""LoKr: the Kronecker product of two small matrices, which may be low-rank products (Edalati et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import DenseOperands, Layer, Operands, TensorShape, as_matrix, layer_forward
from velatura.overlays.deltas.product import DORA_SCALE, ProductDelta

LOKR_W1, LOKR_W2, LOKR_T2 = "lokr_w1", "lokr_w2", "lokr_t2"
FACTOR_KEYS = frozenset({LOKR_W1, LOKR_W2, *(f"{name}_{half}" for name in (LOKR_W1, LOKR_W2) for half in "ab")})


class LoKrOperands(NamedTuple):
    """Scaled w1 (a, c), and w2 (b, d, ...) as the weight of a small layer."""

    w1: Tensor
    w2: Tensor


class LoKr(ProductDelta):
    """Change kron(w1, w2) * alpha / rank; without low-rank factors the scale is 1."""

    algorithm: ClassVar[str] = "lokr"
    required_suffixes: ClassVar[frozenset[str]] = frozenset()
    optional_suffixes: ClassVar[frozenset[str]] = FACTOR_KEYS | {"alpha", DORA_SCALE, LOKR_T2}

    @classmethod
    def matches(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Return True if one of its factors is among the tensors."""
        return bool(FACTOR_KEYS & tensors.keys())

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float, factor: int = -1) -> Self:
        """Build an untrained delta for a layer: w2 starts as zeros.

        Args:
            layer: The layer.
            rank: Rank of w2; if it is at least half the size of w2, w2 is not decomposed.
            alpha: Alpha.
            factor: Size of w1; -1 for two matrices of similar size.
        """
        out_features, in_features, *kernel = layer.weight.shape
        (a, b), (c, d) = factor_dimension(out_features, factor), factor_dimension(in_features, factor)
        tensors = {LOKR_W1: torch.empty(a, c)}
        nn.init.kaiming_uniform_(tensors[LOKR_W1], a=math.sqrt(5))
        if rank >= max(b, d) / 2:
            tensors[LOKR_W2] = torch.zeros(b, d, *kernel)
            return cls.from_tensors({**tensors, "alpha": torch.tensor(float(rank))})
        tensors |= {f"{LOKR_W2}_a": torch.empty(b, rank), f"{LOKR_W2}_b": torch.zeros(rank, d * math.prod(kernel))}
        nn.init.kaiming_uniform_(tensors[f"{LOKR_W2}_a"], a=math.sqrt(5))
        return cls.from_tensors({**tensors, "alpha": torch.tensor(alpha)})

    @property
    def weight_shape(self) -> TensorShape:
        """Return the shape of a weight that it fits; it is flat if w2 is flat."""
        (a, c), (b, d, *kernel) = self._w1().shape, self._w2().shape
        return a * b, c * d, *kernel

    @property
    def rank(self) -> int | None:
        """Return the rank of w2, else that of w1; None if neither is decomposed."""
        for name in (f"{LOKR_W2}_b", f"{LOKR_W1}_b"):
            factor = self.raw_tensor(name)
            if factor is not None:
                return factor.shape[0]
        return None

    def product(self) -> Tensor:
        """Return the Kronecker product, scaled."""
        w1, w2 = self._w1(), self._w2()
        return torch.kron(w1.view(*w1.shape, *[1] * (w2.ndim - 2)), w2) * self._scale

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """Return both factors; w2 is shaped as the weight of a small layer."""
        w1, w2 = self._w1(), self._w2()
        if self.tensor(DORA_SCALE) is not None:
            return super().prepare_operands(layer, dtype)
        width = layer.weight.shape[1] // w1.shape[1]
        small = w2.reshape(len(w2), width, *layer.weight.shape[2:])
        return LoKrOperands((w1 * self._scale).to(dtype), small.to(dtype))

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """Return the change of a layer's output without the full product: w2 is applied to parts of the input, then w1.

        With magnitudes (DoRA) the full product is used.
        """
        if isinstance(operands, DenseOperands):
            return super().output_delta(layer, inputs, base_output, strength, operands)
        assert isinstance(operands, LoKrOperands)
        w1, w2 = self.drop_rows(operands.w1), operands.w2
        if isinstance(layer, nn.Conv2d):
            rows, parts = len(inputs), inputs.reshape(-1, w2.shape[1], *inputs.shape[2:])  # (rows c, d, height, width)
            small = layer_forward(layer, parts, w2, None)
            small = small.reshape(rows, w1.shape[1], *small.shape[1:])
            return torch.einsum("ac,ncbyx->nabyx", w1, small).flatten(1, 2) * strength
        small = layer_forward(layer, inputs.reshape(*inputs.shape[:-1], w1.shape[1], -1), w2, None)  # (..., c, b)
        return (w1 @ small).flatten(-2) * strength

    @property
    def _scale(self) -> Tensor | float:
        return 1.0 if self.rank is None else self.scale(self.rank)

    def _w1(self) -> Tensor:
        whole = self.tensor(LOKR_W1)
        return self._multiply_factors(LOKR_W1) if whole is None else as_matrix(whole)  # (a, c) or (a, c, 1, 1)

    def _w2(self) -> Tensor:
        whole, core = self.tensor(LOKR_W2), self.tensor(LOKR_T2)
        if whole is not None:
            return whole
        if core is None:
            return self._multiply_factors(LOKR_W2)
        a, b = self.tensor(f"{LOKR_W2}_a"), self.tensor(f"{LOKR_W2}_b")
        if a is None or b is None:
            raise ValueError(f"{LOKR_T2} has no {LOKR_W2}_a and {LOKR_W2}_b beside it")
        return torch.einsum("abyx,ao,bi->oiyx", core, as_matrix(a), as_matrix(b))

    def _multiply_factors(self, name: str) -> Tensor:
        a, b = self.tensor(f"{name}_a"), self.tensor(f"{name}_b")
        if a is None or b is None:
            raise ValueError(f"{name} and its factors {name}_a and {name}_b are missing")
        return as_matrix(a) @ as_matrix(b)


def factor_dimension(size: int, factor: int) -> tuple[int, int]:
    """Split a size into two factors, the smaller first, for w1 and w2.

    Args:
        size: The size.
        factor: The wanted factor; -1 for two factors as close to each other as possible.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = max(divisor for divisor in range(1, limit + 1) if size % divisor == 0)
    return small, size // small
