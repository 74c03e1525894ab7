"""GLoRA: a low-rank change beside a low-rank share of the weight itself (Chavan et al. 2023)."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import Delta, Layer, Ready, Shape, computed, flat, shaped

A1, A2, B1, B2 = (f"{each}.weight" for each in ("a1", "a2", "b1", "b2"))
CORE = "bm.weight"


class GLoRA(Delta):
    """b1 @ b2 + W a1 a2, times alpha over rank; in files of LyCORIS before 2.0 b2 @ b1 + W a2 a1."""

    algorithm: ClassVar[str] = "glora"
    needed: ClassVar[frozenset[str]] = frozenset({A1, A2, B1, B2})
    optional: ClassVar[frozenset[str]] = frozenset({"alpha", CORE})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing: a1 and b1 begin as zeros."""
        out, *into = layer.weight.shape
        tensors = {A1: torch.zeros(into[0], rank), A2: torch.empty(rank, into[0])}
        tensors |= {B1: torch.zeros(out, rank), B2: torch.empty(rank, *into)}
        for each in (A2, B2):
            nn.init.kaiming_uniform_(tensors[each], a=math.sqrt(5))
        return cls.from_tensors({**tensors, "alpha": torch.tensor(alpha)})

    @property
    def shape(self) -> Shape:
        """The shape of a weight that it fits."""
        _, tail, left, right = self._halves()
        return left.shape[0], tail.shape[1], *right.shape[2:]

    @property
    def rank(self) -> int:
        """How many ranks it has."""
        return self._halves()[0].shape[1]

    def change(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32."""
        head, tail, left, right = self._halves()
        share = torch.einsum("oi...,ir,rj->oj...", weight.float(), head, tail)
        return (shaped(left @ flat(right), weight) + share) * (self.scale(self.rank) * strength)

    def ready(self, layer: Layer, dtype: torch.dtype) -> Ready:
        """Both low-rank halves of what is added: b's, and a's tail with the weight times its head."""
        head, tail, left, right = self._halves()
        weight, kernel = layer.weight.float(), layer.weight.shape[2:]
        scale = self.scale(self.rank)
        share = torch.einsum("oi...,ir->or...", weight, head) * scale
        right = right.reshape(len(right), -1, *kernel)
        ones = [1] * len(kernel)
        return tuple(
            each.to(dtype)
            for each in (right, (left * scale).view(*left.shape, *ones), tail.view(*tail.shape, *ones), share)
        )

    def output(self, layer: Layer, read: Tensor, made: Tensor, strength: Tensor, ready: Ready) -> Tensor:  # noqa: ARG002
        """What is added, without the whole product."""
        right, left, tail, share = ready
        assert right is not None
        assert left is not None
        assert tail is not None
        assert share is not None
        narrow = computed(layer, read, self.thinned(right), None)
        if isinstance(layer, nn.Conv2d):
            first, second = torch.conv2d(narrow, left), computed(layer, torch.conv2d(read, tail), share, None)
        else:
            first, second = narrow @ left.T, read @ tail.T @ share.T
        return (first + second) * strength

    def _halves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a's head (in, rank) and tail (rank, in), b's left (out, rank) and right (rank, in, ...), in either layout."""
        a1, a2, b1, b2 = (self.of(name) for name in (A1, A2, B1, B2))
        newer = a2.shape[0] <= a2.shape[1]  # a rank is no greater than a width
        head, tail, left, right = (a1, a2, b1, b2) if newer else (a2, a1, b2, b1)
        core = self.tensor(CORE)
        if core is not None:
            right = torch.einsum("abyx,bi->aiyx", core, flat(right))
        return flat(head), flat(tail), flat(left), right
