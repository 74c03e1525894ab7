"""T-LoRA: a low-rank change with fewer ranks where there is more noise (Soboleva et al. 2025, arXiv 2507.05964)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from velatura.errors import BadOverlay
from velatura.overlays.deltas.delta import Delta, Layer, Operands, TensorShape, as_matrix, layer_forward
from velatura.overlays.hooks.memo import TensorMemo

Q, P, LAMBDA = "q_layer.weight", "p_layer.weight", "lambda_layer"
TIMESTEP_COUNT = 1000  # of the noise schedule of all Stable Diffusions
# What a file does not say is as LyCORIS has it by default: from one rank in pure noise, in a straight line, to all
MIN_RANK = 1
MIN_ALIGNMENT = 0.3  # cosine to the base's singular vectors; of random vectors it is 0.1 or less, of trained ones 0.9


class SingularFactors(NamedTuple):
    """Singular vectors and values of a weight, those that a T-LoRA began with.

    Attributes:
        left: (out, rank).
        values: (rank,).
        right: (rank, in).
    """

    left: Tensor
    values: Tensor
    right: Tensor


class TLoraOperands(NamedTuple):
    """The trained low-rank product, and minus the one that it began with, as one pair of factors.

    Attributes:
        down: (2 rank, in, ...), the weight of a layer.
        up: (out, 2 rank), scaled.
        mask: 1 for the ranks that act at the timesteps of the batch, (rows, 2 rank); None: all act.
    """

    down: Tensor
    up: Tensor
    mask: Tensor | None


class TLora(Delta):
    """Change (P diag(l m) Q - P0 diag(l0 m) Q0) * alpha / rank, m being 1 for the ranks that act at a timestep.

    P0, l0 and Q0 are a part of the singular value decomposition of the base's weight, which is not in the file. Without
    timesteps, as in text encoders and in baked weights, all ranks act.
    """

    algorithm: ClassVar[str] = "tlora"
    required_suffixes: ClassVar[frozenset[str]] = frozenset({Q, P, LAMBDA})
    uses_timesteps: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._base_factors = TensorMemo[SingularFactors]()

    def __getstate__(self) -> dict[str, object]:
        """Leave the memo out of copies: its weak references cannot be copied."""
        return {**self.__dict__, "_base_factors": TensorMemo[SingularFactors]()}

    @property
    def weight_shape(self) -> TensorShape:
        """Return the shape of a weight that it fits."""
        return self.shape_of(P)[0], *self.shape_of(Q)[1:]

    @property
    def rank(self) -> int:
        """Return the rank."""
        return self.shape_of(Q)[0]

    def weight_delta(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """Return the change of a weight with all ranks, times the strength."""
        down, up = self._factors(weight)
        return (up @ down).reshape(weight.shape) * strength

    def prepare_operands(self, layer: Layer, dtype: torch.dtype) -> Operands:
        """Return the factors, without a mask."""
        down, up = self._factors(layer.weight)
        return TLoraOperands(down.reshape(len(down), *layer.weight.shape[1:]).to(dtype), up.to(dtype), None)

    def select_ranks(self, operands: Operands, timesteps: Tensor) -> Operands:
        """Return the operands with a mask of the ranks that act at timesteps (rows,), or () for all rows."""
        assert isinstance(operands, TLoraOperands)
        mask = rank_mask(timesteps.reshape(-1), self.rank).to(operands.down)
        return operands._replace(mask=torch.cat([mask, mask], dim=1))

    def output_delta(
        self,
        layer: Layer,
        inputs: Tensor,
        base_output: Tensor,  # noqa: ARG002
        strength: Tensor,
        operands: Operands,
    ) -> Tensor:
        """Return the change of a layer's output without the full product."""
        assert isinstance(operands, TLoraOperands)
        down, up, mask = operands
        down_output = layer_forward(layer, inputs, down, None)
        is_conv = isinstance(layer, nn.Conv2d)
        if mask is not None:
            shape = (*mask.shape, 1, 1) if is_conv else (len(mask), *[1] * (inputs.ndim - 2), mask.shape[1])
            down_output = down_output * mask.view(shape)
        up_output = torch.conv2d(down_output, up[..., None, None]) if is_conv else down_output @ up.T
        return up_output * strength

    def _factors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the trained factors and, behind them, those that they began with, negative: down and scaled up."""
        q, p, values = as_matrix(self.required_tensor(Q)), as_matrix(self.required_tensor(P)), self._values
        if weight.shape[2:].numel() > 1 or len(values) != len(q):
            raise ValueError("T-LoRA changes only Linear layers and convolutions of size 1")
        base = self._base_factors_of(weight)
        down = torch.cat([values[:, None] * q, base.values[:, None] * base.right])
        return down, torch.cat([p, -base.left], dim=1) * self.scale(self.rank)

    def _base_factors_of(self, weight: Tensor) -> SingularFactors:
        """Return the factors that it began with, computed once for each weight."""
        if weight.is_meta:
            return self._find_base_factors(weight)
        return self._base_factors.get_or_compute((weight,), None, lambda: self._find_base_factors(weight))

    @property
    def _values(self) -> Tensor:
        return self.required_tensor(LAMBDA).flatten()

    @torch.no_grad()
    def _find_base_factors(self, weight: Tensor) -> SingularFactors:
        """Return those of the weight's singular vectors that P is nearest to: the first, the last or the middle ones.

        Raises:
            BadOverlay: It is near to none of them.
        """
        candidates = list(_candidates(as_matrix(weight.float()), self.rank))
        if weight.is_meta:
            return candidates[0]
        p = as_matrix(self.required_tensor(P)).to(weight.device)
        # LyCORIS begins with the first ones unless it is told otherwise, and does not write down which
        alignments = [_alignment(p, candidate.left) for candidate in candidates]
        best = max(alignments)
        if not best > MIN_ALIGNMENT:
            raise BadOverlay(
                "a T-LoRA is not near to the singular vectors of this base: it was trained on another base, or from "
                "random vectors, which are not in its file; use the base of its training"
            )
        return candidates[alignments.index(best)]


def rank_mask(timesteps: Tensor, rank: int) -> Tensor:
    """Return 1 for the ranks that act at timesteps, (rows, rank): more of them where there is less noise.

    Args:
        timesteps: (rows,), 0 to 1000.
        rank: Number of ranks.
    """
    share = (TIMESTEP_COUNT - timesteps.double()) / TIMESTEP_COUNT
    counts = (share * (rank - MIN_RANK)).floor() + MIN_RANK
    return (torch.arange(rank, device=timesteps.device) < counts[:, None]).float()


def _candidates(weight: Tensor, rank: int) -> Iterator[SingularFactors]:
    """Yield the first, the last and the middle singular vectors; missing ones, of a rank above the weight's, are 0."""
    svd = torch.linalg.svd(weight, full_matrices=False)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    left, values, right = cast("tuple[Tensor, Tensor, Tensor]", svd)
    missing = max(0, rank - len(values))
    if missing:
        left = nn.functional.pad(left, (0, missing))
        values, right = nn.functional.pad(values, (0, missing)), nn.functional.pad(right, (0, 0, 0, missing))
    count = len(values)
    for start in (0, count - rank, math.floor((count - rank) / 2)):
        part = slice(start, start + rank)
        yield SingularFactors(left[:, part], values[part], right[part])


def _alignment(vectors: Tensor, others: Tensor) -> float:
    """Return the mean absolute cosine between the columns of two matrices."""
    return nn.functional.cosine_similarity(vectors, others, dim=0).abs().mean().item()
