"""The nearest change of a low rank to a change of a weight, by singular values (Eckart and Young 1936)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from velatura.overlays.deltas.low_rank import LORA_DOWN, LORA_UP, LowRankDelta

linalg: Any = torch.linalg  # which has no types

EXACT_SVD_SIZE = 256  # rows or columns: below that nothing is gained by chance
OVERSAMPLING, POWER_ITERATIONS = (
    16,
    4,
)  # more directions than are asked for, and how often they are turned towards the change


def nearest_low_rank(change: Tensor, rank: int | None = None, tolerance: float | None = None) -> LowRankDelta | None:
    """The delta of a rank that is nearest to a change, (out, in, ...), or of the least rank that is near enough.

    tolerance: how large what is missed may be, relative to the change; rank then bounds it. None where there is no
    change at all. Up and down are of one size, so that both survive half precision.
    """
    flat = change.float().flatten(1)
    if not bool(flat.any()):
        return None
    max_rank = min(flat.shape) if rank is None else min(rank, *flat.shape)
    if tolerance is None and 4 * max_rank < min(flat.shape) and min(flat.shape) > EXACT_SVD_SIZE:
        vectors = _randomized_singular_vectors(flat, max_rank)
    else:
        vectors = _singular_vectors(flat, max_rank, tolerance)
    return low_rank_delta(vectors, vectors.T @ flat, change.shape)


def reduce_rank(
    up: Tensor, down: Tensor, rank: int | None = None, tolerance: float | None = None
) -> tuple[Tensor, Tensor]:
    """The same of a product up @ down (out, ranks) @ (ranks, in), which is never multiplied out."""
    left, small_up = linalg.qr(up.double())
    _, small_down = linalg.qr(down.double().T)
    small = small_up @ small_down.T
    eigen = linalg.eigh(small @ small.T)
    squares, vectors = eigen.eigenvalues.flip(-1).clamp(min=0), eigen.eigenvectors.flip(-1)
    max_rank = len(squares) if rank is None else min(rank, len(squares))
    count = max_rank if tolerance is None else min(max_rank, _rank_within(squares, tolerance))
    left_vectors = (left @ vectors[:, :count]).float()
    return left_vectors, (left_vectors.T @ up) @ down


def low_rank_delta(up: Tensor, down: Tensor, shape: tuple[int, ...]) -> LowRankDelta:
    """The delta of a product up @ down, in float32, for a weight of a shape; each rank's two halves of one size."""
    sizes = [factor.square().sum(dim) ** 0.25 for factor, dim in ((up, 0), (down, 1))]
    up_size, down_size = (torch.where(size > 0, size, 1) for size in sizes)
    balance = down_size / up_size
    rank, kernel = up.shape[1], shape[2:]
    return LowRankDelta.from_tensors(
        {
            LORA_DOWN: (down / balance[:, None]).float().reshape(rank, shape[1], *kernel).contiguous(),
            LORA_UP: (up * balance).float().reshape(-1, rank, *[1] * len(kernel)).contiguous(),
            "alpha": torch.tensor(float(rank)),
        }
    )


def _singular_vectors(flat: Tensor, max_rank: int, tolerance: float | None) -> Tensor:
    """The first left singular vectors, found in float64 by the smaller of the two products with itself."""
    matrix = flat.double()
    is_tall = matrix.shape[0] > matrix.shape[1]
    eigen = linalg.eigh(matrix.T @ matrix if is_tall else matrix @ matrix.T)
    squares, vectors = eigen.eigenvalues.flip(-1).clamp(min=0), eigen.eigenvectors.flip(-1)
    count = max_rank if tolerance is None else min(max_rank, _rank_within(squares, tolerance))
    if not is_tall:
        return vectors[:, :count].float()
    left = matrix @ vectors[:, :count]
    return (left / left.norm(dim=0).clamp(min=1e-300)).float()


def _rank_within(squares: Tensor, tolerance: float) -> int:
    """How many singular values it takes, given their squares, until the rest is within a tolerance; at least 1."""
    rest = (squares.sum() - squares.cumsum(0)).clamp(min=0)
    return 1 + int((rest > tolerance**2 * squares.sum()).sum())


def _randomized_singular_vectors(flat: Tensor, rank: int) -> Tensor:
    """The same by chance, always the same: a sketch and some rounds of power iteration (Halko et al. 2011, 4.4)."""
    generator = torch.Generator().manual_seed(0)
    test_matrix = torch.randn(flat.shape[1], rank + OVERSAMPLING, generator=generator).to(flat.device)
    basis: Tensor = linalg.qr(flat @ test_matrix).Q
    for _ in range(POWER_ITERATIONS):
        basis = linalg.qr(flat @ linalg.qr(flat.T @ basis).Q).Q
    small = (basis.T @ flat).double()
    vectors: Tensor = linalg.eigh(small @ small.T).eigenvectors[:, -rank:].flip(-1)
    return basis @ vectors.float()
