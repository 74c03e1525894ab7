"""Find the low-rank change that is nearest to a change of a weight, by singular values (Eckart and Young 1936)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from velatura.errors import BadOverlay
from velatura.overlays.deltas.low_rank import LORA_DOWN, LORA_UP, LowRankDelta

linalg: Any = torch.linalg  # torch.linalg has no type annotations

EXACT_SVD_SIZE = 256  # rows or columns up to which the exact SVD is as fast as the randomized one
# Directions beyond the rank, and rounds of power iteration, of the randomized SVD
OVERSAMPLING, POWER_ITERATIONS = 16, 4


def check_rank(rank: int | None, tolerance: float | None = None) -> None:
    """Refuse ranks below 1, and tolerances that are not between 0 and 1; raises BadOverlay."""
    if rank is not None and rank < 1:
        raise BadOverlay(f"a LoRA cannot have rank {rank}: give 1 or more")
    if tolerance is not None and not 0 < tolerance < 1:
        raise BadOverlay(f"the tolerance is {tolerance:g}: give a number between 0 and 1, such as 0.3")


def nearest_low_rank(change: Tensor, rank: int | None = None, tolerance: float | None = None) -> LowRankDelta | None:
    """Return the low-rank delta that is nearest to a change of a weight.

    Args:
        change: The change, (out, in) or (out, in, height, width).
        rank: The rank of the delta; with a tolerance the largest rank allowed.
        tolerance: Take the least rank whose error, relative to the size of the change, is at most this.

    Returns:
        The delta, None if the change is zero. In each rank `up` and `down` have the same norm, so that both survive
        half precision.
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
    """Return the nearest product of a lower rank to up @ down, which is never multiplied out.

    Args:
        up: (out, ranks).
        down: (ranks, in).
        rank, tolerance: See `nearest_low_rank`.
    """
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
    """Return the delta of a product, in float32.

    Args:
        up: (out, rank).
        down: (rank, in), or of a convolution (rank, in * height * width).
        shape: The shape of the weight.

    Returns:
        The delta, in which `up` and `down` have the same norm in each rank.
    """
    up_norm, down_norm = up.square().sum(0) ** 0.25, down.square().sum(1) ** 0.25  # square roots of the norms
    up_norm = torch.where(up_norm > 0, up_norm, 1)
    down_norm = torch.where(down_norm > 0, down_norm, 1)
    balance = down_norm / up_norm
    rank, kernel = up.shape[1], shape[2:]
    return LowRankDelta.from_tensors(
        {
            LORA_DOWN: (down / balance[:, None]).float().reshape(rank, shape[1], *kernel).contiguous(),
            LORA_UP: (up * balance).float().reshape(-1, rank, *[1] * len(kernel)).contiguous(),
            "alpha": torch.tensor(float(rank)),
        }
    )


def _singular_vectors(flat: Tensor, max_rank: int, tolerance: float | None) -> Tensor:
    """Return the first left singular vectors, from the smaller of the two Gram matrices in float64."""
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
    """Return the least rank, at least 1, whose error is within a tolerance, given the squared singular values."""
    rest = (squares.sum() - squares.cumsum(0)).clamp(min=0)
    return 1 + int((rest > tolerance**2 * squares.sum()).sum())


def _randomized_singular_vectors(flat: Tensor, rank: int) -> Tensor:
    """Return approximate left singular vectors by the randomized SVD of Halko et al. (2011, 4.4), with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    test_matrix = torch.randn(flat.shape[1], rank + OVERSAMPLING, generator=generator).to(flat.device)
    basis: Tensor = linalg.qr(flat @ test_matrix).Q
    for _ in range(POWER_ITERATIONS):
        basis = linalg.qr(flat @ linalg.qr(flat.T @ basis).Q).Q
    small = (basis.T @ flat).double()
    vectors: Tensor = linalg.eigh(small @ small.T).eigenvectors[:, -rank:].flip(-1)
    return basis @ vectors.float()
