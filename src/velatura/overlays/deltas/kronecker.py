"""LoKr: a Kronecker product of two small matrices, of which either may be a product itself (Edalati et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import Layer, Ready, Shape, computed, flat
from velatura.overlays.deltas.product import MAGNITUDE, Product

W1, W2, CORE = "lokr_w1", "lokr_w2", "lokr_t2"
FACTORS = frozenset({W1, W2, *(f"{each}_{half}" for each in (W1, W2) for half in "ab")})


class LoKr(Product):
    """kron(w1, w2), times alpha over the rank of what is decomposed, or 1 where nothing is."""

    algorithm: ClassVar[str] = "lokr"
    needed: ClassVar[frozenset[str]] = frozenset()
    optional: ClassVar[frozenset[str]] = FACTORS | {"alpha", MAGNITUDE, CORE}

    @classmethod
    def knows(cls, tensors: Mapping[str, Tensor]) -> bool:
        """Whether any of its factors is there."""
        return bool(FACTORS & tensors.keys())

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float, factor: int = -1) -> Self:
        """An untrained one for a layer, which adds exactly nothing; factor: the size of w1, -1 the squarest.

        w2 is whole where the rank is at least half its size, and begins as zeros.
        """
        out, into, *kernel = layer.weight.shape
        (a, b), (c, d) = factorised(out, factor), factorised(into, factor)
        tensors = {W1: torch.empty(a, c)}
        nn.init.kaiming_uniform_(tensors[W1], a=math.sqrt(5))
        if rank >= max(b, d) / 2:
            tensors[W2] = torch.zeros(b, d, *kernel)
            return cls.from_tensors({**tensors, "alpha": torch.tensor(float(rank))})
        tensors |= {f"{W2}_a": torch.empty(b, rank), f"{W2}_b": torch.zeros(rank, d * math.prod(kernel))}
        nn.init.kaiming_uniform_(tensors[f"{W2}_a"], a=math.sqrt(5))
        return cls.from_tensors({**tensors, "alpha": torch.tensor(alpha)})

    @property
    def shape(self) -> Shape:
        """The shape of a weight that it fits, flat where w2 is."""
        (a, c), (b, d, *kernel) = self._first().shape, self._second().shape
        return a * b, c * d, *kernel

    @property
    def rank(self) -> int | None:
        """The rank of what is decomposed."""
        low = next((each for name in (f"{W2}_b", f"{W1}_b") if (each := self.kept(name)) is not None), None)
        return None if low is None else low.shape[0]

    def product(self) -> Tensor:
        """The Kronecker product, at its scale."""
        first, second = self._first(), self._second()
        return torch.kron(first.view(*first.shape, *[1] * (second.ndim - 2)), second) * self._scale

    def ready(self, layer: Layer, dtype: torch.dtype) -> Ready:
        """Both factors, of which the second is a small layer of its own."""
        first, second = self._first(), self._second()
        if self.tensor(MAGNITUDE) is not None:
            return super().ready(layer, dtype)
        width = layer.weight.shape[1] // first.shape[1]
        small = second.reshape(len(second), width, *layer.weight.shape[2:])
        return (first * self._scale).to(dtype), small.to(dtype), None

    def output(self, layer: Layer, read: Tensor, made: Tensor, strength: Tensor, ready: Ready) -> Tensor:
        """What is added, without the whole product: w2 of each part of what is read, and w1 of what that gives."""
        if len(ready) == 2:
            return super().output(layer, read, made, strength, ready)
        first, second, _ = ready
        assert first is not None
        assert second is not None
        first = self.thinned(first)
        if isinstance(layer, nn.Conv2d):
            rows, parts = len(read), read.reshape(-1, second.shape[1], *read.shape[2:])  # (rows c, d, height, width)
            small = computed(layer, parts, second, None)
            small = small.reshape(rows, first.shape[1], *small.shape[1:])
            return torch.einsum("ac,ncbyx->nabyx", first, small).flatten(1, 2) * strength
        small = computed(layer, read.reshape(*read.shape[:-1], first.shape[1], -1), second, None)  # (..., c, b)
        return (first @ small).flatten(-2) * strength

    @property
    def _scale(self) -> Tensor | float:
        return 1.0 if self.rank is None else self.scale(self.rank)

    def _first(self) -> Tensor:
        whole = self.tensor(W1)
        return self._halves(W1) if whole is None else whole

    def _second(self) -> Tensor:
        whole, core = self.tensor(W2), self.tensor(CORE)
        if whole is not None:
            return whole
        if core is None:
            return self._halves(W2)
        a, b = self.tensor(f"{W2}_a"), self.tensor(f"{W2}_b")
        if a is None or b is None:
            raise ValueError("a core without factors")
        return torch.einsum("abyx,ao,bi->oiyx", core, a, b)

    def _halves(self, name: str) -> Tensor:
        a, b = self.tensor(f"{name}_a"), self.tensor(f"{name}_b")
        if a is None or b is None:
            raise ValueError(f"no whole {name}")
        return flat(a) @ flat(b)


def factorised(size: int, factor: int) -> tuple[int, int]:
    """The two factors of a size that w1 and w2 get, the smaller first: by a wanted one, or the squarest for -1."""
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    small = max(each for each in range(1, limit + 1) if size % each == 0)
    return small, size // small
