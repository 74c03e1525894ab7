"""The nearest change of a low rank to a change of a weight, by singular values (Eckart and Young 1936)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from velatura.overlays.deltas.low_rank import DOWN, UP, LowRank

linalg: Any = torch.linalg  # which has no types

SMALL = 256  # rows or columns: below that nothing is gained by chance
SPARE, ROUNDS = 16, 4  # more directions than are asked for, and how often they are turned towards the change


def nearest(change: Tensor, rank: int | None = None, tolerance: float | None = None) -> LowRank | None:
    """The delta of a rank that is nearest to a change, (out, in, ...), or of the least rank that is near enough.

    tolerance: how large what is missed may be, relative to the change; rank then bounds it. None where there is no
    change at all. Up and down are of one size, so that both survive half precision.
    """
    flat = change.float().flatten(1)
    if not bool(flat.any()):
        return None
    most = min(flat.shape) if rank is None else min(rank, *flat.shape)
    if tolerance is None and 4 * most < min(flat.shape) and min(flat.shape) > SMALL:
        vectors = _sketched(flat, most)
    else:
        vectors = _exact(flat, most, tolerance)
    return delta(vectors, vectors.T @ flat, change.shape)


def narrowed(
    up: Tensor, down: Tensor, rank: int | None = None, tolerance: float | None = None
) -> tuple[Tensor, Tensor]:
    """The same of a product up @ down (out, ranks) @ (ranks, in), which is never multiplied out."""
    left, small_up = linalg.qr(up.double())
    _, small_down = linalg.qr(down.double().T)
    small = small_up @ small_down.T
    found = linalg.eigh(small @ small.T)
    squares, vectors = found.eigenvalues.flip(-1).clamp(min=0), found.eigenvectors.flip(-1)
    most = len(squares) if rank is None else min(rank, len(squares))
    count = most if tolerance is None else min(most, _enough(squares, tolerance))
    turned = (left @ vectors[:, :count]).float()
    return turned, (turned.T @ up) @ down


def delta(up: Tensor, down: Tensor, shape: tuple[int, ...]) -> LowRank:
    """The delta of a product up @ down, in float32, for a weight of a shape; each rank's two halves of one size."""
    sizes = [each.square().sum(dim) ** 0.25 for each, dim in ((up, 0), (down, 1))]
    up_size, down_size = (torch.where(each > 0, each, 1) for each in sizes)
    balance = down_size / up_size
    rank, kernel = up.shape[1], shape[2:]
    return LowRank.from_tensors(
        {
            DOWN: (down / balance[:, None]).float().reshape(rank, shape[1], *kernel).contiguous(),
            UP: (up * balance).float().reshape(-1, rank, *[1] * len(kernel)).contiguous(),
            "alpha": torch.tensor(float(rank)),
        }
    )


def _exact(flat: Tensor, most: int, tolerance: float | None) -> Tensor:
    """The first left singular vectors, found in float64 by the smaller of the two products with itself."""
    wide = flat.double()
    turned = wide.shape[0] > wide.shape[1]
    found = linalg.eigh(wide.T @ wide if turned else wide @ wide.T)
    squares, vectors = found.eigenvalues.flip(-1).clamp(min=0), found.eigenvectors.flip(-1)
    count = most if tolerance is None else min(most, _enough(squares, tolerance))
    if not turned:
        return vectors[:, :count].float()
    left = wide @ vectors[:, :count]
    return (left / left.norm(dim=0).clamp(min=1e-300)).float()


def _enough(squares: Tensor, tolerance: float) -> int:
    """How many singular values it takes, given their squares, until the rest is within a tolerance; at least 1."""
    rest = (squares.sum() - squares.cumsum(0)).clamp(min=0)
    return 1 + int((rest > tolerance**2 * squares.sum()).sum())


def _sketched(flat: Tensor, rank: int) -> Tensor:
    """The same by chance, always the same: a sketch and some rounds of power iteration (Halko et al. 2011, 4.4)."""
    generator = torch.Generator().manual_seed(0)
    chance = torch.randn(flat.shape[1], rank + SPARE, generator=generator).to(flat.device)
    basis: Tensor = linalg.qr(flat @ chance).Q
    for _ in range(ROUNDS):
        basis = linalg.qr(flat @ linalg.qr(flat.T @ basis).Q).Q
    small = (basis.T @ flat).double()
    vectors: Tensor = linalg.eigh(small @ small.T).eigenvectors[:, -rank:].flip(-1)
    return basis @ vectors.float()
