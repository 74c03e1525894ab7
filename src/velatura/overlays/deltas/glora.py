"""GLoRA: a low-rank change plus a low-rank multiple of the weight itself (Chavan et al. 2023)."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple, Self

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


class GLoRAOperands(NamedTuple):
    """Factors of both low-rank parts, as weights of layers.

    Attributes:
        right, left: The factors of b, of shapes (rank, in, ...) and (out, rank, 1, ...); left is scaled.
        tail: The second factor of a, (rank, in, 1, ...).
        share: The weight times the first factor of a, scaled: (out, rank, ...).
    """

    right: Tensor
    left: Tensor
    tail: Tensor
    share: Tensor


class GLoRA(Delta):
    """Change (b1 @ b2 + W a1 a2) * alpha / rank; files of LyCORIS before 2.0 hold b2 @ b1 + W a2 a1."""

    algorithm: ClassVar[str] = "glora"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({A1, A2, B1, B2})
    optional_suffixes: ClassVar[frozenset[str]] = frozenset({"alpha", GLORA_BM})

    @classmethod
    def for_layer(cls, layer: Layer, *, rank: int, alpha: float) -> Self:
        """Build an untrained delta for a layer: a1 and b1 start as zeros."""
        out, *in_shape = layer.weight.shape
        tensors = {A1: torch.zeros(in_shape[0], rank), A2: torch.empty(rank, in_shape[0])}
        tensors |= {B1: torch.zeros(out, rank), B2: torch.empty(rank, *in_shape)}
        for key in (A2, B2):
            nn.init.kaiming_uniform_(tensors[key], a=math.sqrt(5))
        return cls.from_tensors({**tensors, "alpha": torch.tensor(alpha)})

    @property
    def weight_shape(self) -> TensorShape:
        """Return the shape of a weight that it fits."""
        _, tail, left, right = self._factors()
        return left.shape[0], tail.shape[1], *right.shape[2:]

    @property
    def rank(self) -> int:
        """Return the rank."""
        return self._factors()[0].shape[1]

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of a weight at a strength, in the weight's shape, in float32."""
        head, tail, left, right = self._factors()
        share = torch.einsum("oi...,ir,rj->oj...", weight.float(), head, tail)
        return (reshape_to_weight(left @ as_matrix(right), weight) + share) * (self.scale(self.rank) * strength)

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """Return the factors of b, the second factor of a, and the weight times the first factor of a."""
        head, tail, left, right = self._factors()
        weight, kernel = layer.weight.float(), layer.weight.shape[2:]
        scale = self.scale(self.rank)
        share = torch.einsum("oi...,ir->or...", weight, head) * scale
        right = right.reshape(len(right), -1, *kernel)
        ones = [1] * len(kernel)
        return GLoRAOperands(
            right=right.to(dtype),
            left=(left * scale).view(*left.shape, *ones).to(dtype),
            tail=tail.view(*tail.shape, *ones).to(dtype),
            share=share.to(dtype),
        )

    def output_delta(
        self,
        layer: Layer,
        inputs: Tensor,
        base_output: Tensor,  # noqa: ARG002
        strength: Tensor,
        operands: Operands,
    ) -> Tensor:
        """Return the change of a layer's output without the full product."""
        assert isinstance(operands, GLoRAOperands)
        right, left, tail, share = operands
        narrow = layer_forward(layer, inputs, self.drop_rows(right), None)
        if isinstance(layer, nn.Conv2d):
            b_output = torch.conv2d(narrow, left)
            a_output = layer_forward(layer, torch.conv2d(inputs, tail), share, None)
        else:
            b_output, a_output = narrow @ left.T, inputs @ tail.T @ share.T
        return (b_output + a_output) * strength

    def _factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a's factors (in, rank) and (rank, in), and b's (out, rank) and (rank, in, ...), for both layouts."""
        a1, a2, b1, b2 = (self.required_tensor(name) for name in (A1, A2, B1, B2))
        is_new_layout = a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0]  # the rank
        if a1.shape[0] == a2.shape[1] == b1.shape[0] == b2.shape[1]:  # it may be the old layout
            is_new_layout = is_new_layout and a2.shape[0] <= a2.shape[1]  # the rank is at most the width
        head, tail, left, right = (a1, a2, b1, b2) if is_new_layout else (a2, a1, b2, b1)
        core = self.tensor(GLORA_BM)
        if core is not None:
            right = torch.einsum("abyx,bi->aiyx", core, as_matrix(right))
        return as_matrix(head), as_matrix(tail), as_matrix(left), right
