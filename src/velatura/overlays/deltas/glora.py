"""GLoRA: a low-rank change beside a low-rank share of the weight itself (Chavan et al. 2023)."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from velatura.overlays.deltas.delta import (
    Delta,
    Layer,
    Operands,
    TensorShape,
    as_matrix,
    layer_forward,
    reshape_to_weight,
)

A1, A2, B1, B2 = (f"{name}.weight" for name in ("a1", "a2", "b1", "b2"))
GLORA_BM = "bm.weight"


class GLoRA(Delta):
    """b1 @ b2 + W a1 a2, times alpha over rank; in files of LyCORIS before 2.0 b2 @ b1 + W a2 a1."""

    algorithm: ClassVar[str] = "glora"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({A1, A2, B1, B2})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha", GLORA_BM})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """An untrained one for a layer, which adds exactly nothing: a1 and b1 begin as zeros."""
        out, *in_shape = layer.weight.shape
        tensors = {A1: torch.zeros(in_shape[0], rank), A2: torch.empty(rank, in_shape[0])}
        tensors |= {B1: torch.zeros(out, rank), B2: torch.empty(rank, *in_shape)}
        for key in (A2, B2):
            nn.init.kaiming_uniform_(tensors[key], a=math.sqrt(5))
        return cls.from_tensors({**tensors, "alpha": torch.tensor(alpha)})

    @property
    def weight_shape(self) -> TensorShape:
        """The shape of a weight that it fits."""
        _, tail, left, right = self._factors()
        return left.shape[0], tail.shape[1], *right.shape[2:]

    @property
    def rank(self) -> int:
        """How many ranks it has."""
        return self._factors()[0].shape[1]

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """What is added to a weight at a strength, in its shape, in float32."""
        head, tail, left, right = self._factors()
        share = torch.einsum("oi...,ir,rj->oj...", weight.float(), head, tail)
        return (reshape_to_weight(left @ as_matrix(right), weight) + share) * (self.scale(self.rank) * strength)

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """Both low-rank halves of what is added: b's, and a's tail with the weight times its head."""
        head, tail, left, right = self._factors()
        weight, kernel = layer.weight.float(), layer.weight.shape[2:]
        scale = self.scale(self.rank)
        share = torch.einsum("oi...,ir->or...", weight, head) * scale
        right = right.reshape(len(right), -1, *kernel)
        ones = [1] * len(kernel)
        return tuple(
            tensor.to(dtype)
            for tensor in (right, (left * scale).view(*left.shape, *ones), tail.view(*tail.shape, *ones), share)
        )

    def output_delta(
        self,
        layer: Layer,
        inputs: Tensor,
        base_output: Tensor,  # noqa: ARG002
        strength: Tensor,
        operands: Operands,
    ) -> Tensor:
        """What is added, without the whole product."""
        right, left, tail, share = operands
        assert right is not None
        assert left is not None
        assert tail is not None
        assert share is not None
        narrow = layer_forward(layer, inputs, self.drop_rows(right), None)
        if isinstance(layer, nn.Conv2d):
            first, second = torch.conv2d(narrow, left), layer_forward(layer, torch.conv2d(inputs, tail), share, None)
        else:
            first, second = narrow @ left.T, inputs @ tail.T @ share.T
        return (first + second) * strength

    def _factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a's head (in, rank) and tail (rank, in), b's left (out, rank) and right (rank, in, ...), in either layout."""
        a1, a2, b1, b2 = (self.required_tensor(name) for name in (A1, A2, B1, B2))
        is_new_layout = a2.shape[0] <= a2.shape[1]  # a rank is no greater than a width
        head, tail, left, right = (a1, a2, b1, b2) if is_new_layout else (a2, a1, b2, b1)
        core = self.tensor(GLORA_BM)
        if core is not None:
            right = torch.einsum("abyx,bi->aiyx", core, as_matrix(right))
        return as_matrix(head), as_matrix(tail), as_matrix(left), right
