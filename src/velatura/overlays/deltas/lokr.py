"""LoKr: a Kronecker product of two small matrices, of which either may be a product itself (Edalati et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import Layer, Operands, TensorShape, as_matrix, layer_forward
from velatura.overlays.deltas.product import DORA_SCALE, ProductDelta

LOKR_W1, LOKR_W2, LOKR_T2 = "lokr_w1", "lokr_w2", "lokr_t2"
FACTOR_KEYS = frozenset({LOKR_W1, LOKR_W2, *(f"{name}_{half}" for name in (LOKR_W1, LOKR_W2) for half in "ab")})


class LoKr(ProductDelta):
    """kron(w1, w2), times alpha over the rank of what is decomposed, or 1 where nothing is."""

    algorithm: ClassVar[str] = "lokr"
    required_suffixes: ClassVar[frozenset[str]] = frozenset()
    optional_suffixes: ClassVar[frozenset[str]] = FACTOR_KEYS | {"alpha", DORA_SCALE, LOKR_T2}

    @classmethod
    def matches(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Whether any of its factors is there."""
        return bool(FACTOR_KEYS & tensors.keys())

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float, factor: int = -1) -> Self:
        """An untrained one for a layer, which adds exactly nothing; factor: the size of w1, -1 the squarest.

        w2 is whole where the rank is at least half its size, and begins as zeros.
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
        """The shape of a weight that it fits, flat where w2 is."""
        (a, c), (b, d, *kernel) = self._w1().shape, self._w2().shape
        return a * b, c * d, *kernel

    @property
    def rank(self) -> int | None:
        """The rank of what is decomposed."""
        factor = next(
            (tensor for name in (f"{LOKR_W2}_b", f"{LOKR_W1}_b") if (tensor := self.raw_tensor(name)) is not None), None
        )
        return None if factor is None else factor.shape[0]

    def product(self) -> Tensor:
        """The Kronecker product, at its scale."""
        w1, w2 = self._w1(), self._w2()
        return torch.kron(w1.view(*w1.shape, *[1] * (w2.ndim - 2)), w2) * self._scale

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """Both factors, of which the second is a small layer of its own."""
        w1, w2 = self._w1(), self._w2()
        if self.tensor(DORA_SCALE) is not None:
            return super().prepare_operands(layer, dtype)
        width = layer.weight.shape[1] // w1.shape[1]
        small = w2.reshape(len(w2), width, *layer.weight.shape[2:])
        return (w1 * self._scale).to(dtype), small.to(dtype), None

    def output_delta(
        self, layer: Layer, inputs: Tensor, base_output: Tensor, strength: Tensor, operands: Operands
    ) -> Tensor:
        """What is added, without the whole product: w2 of each part of what is read, and w1 of what that gives."""
        if len(operands) == 2:
            return super().output_delta(layer, inputs, base_output, strength, operands)
        w1, w2, _ = operands
        assert w1 is not None
        assert w2 is not None
        w1 = self.drop_rows(w1)
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
        return self._multiply_factors(LOKR_W1) if whole is None else whole

    def _w2(self) -> Tensor:
        whole, core = self.tensor(LOKR_W2), self.tensor(LOKR_T2)
        if whole is not None:
            return whole
        if core is None:
            return self._multiply_factors(LOKR_W2)
        a, b = self.tensor(f"{LOKR_W2}_a"), self.tensor(f"{LOKR_W2}_b")
        if a is None or b is None:
            raise ValueError("a core without factors")
        return torch.einsum("abyx,ao,bi->oiyx", core, a, b)

    def _multiply_factors(self, name: str) -> Tensor:
        a, b = self.tensor(f"{name}_a"), self.tensor(f"{name}_b")
        if a is None or b is None:
            raise ValueError(f"no whole {name}")
        return as_matrix(a) @ as_matrix(b)


def factor_dimension(size: int, factor: int) -> tuple[int, int]:
    """The two factors of a size that w1 and w2 get, the smaller first: by a wanted one, or the squarest for -1."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = max(divisor for divisor in range(1, limit + 1) if size % divisor == 0)
    return small, size // small
