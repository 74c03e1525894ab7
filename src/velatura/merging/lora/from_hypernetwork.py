"""Hypernetworks as LoRAs: what they do to K and V, as far as products of a low rank can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import BadOverlay
from velatura.merging.bake.bake import CALIBRATION_STEPS, copy_with_changes, measure_bake
from velatura.merging.bake.calibration import OnCalibrationStep, calibrate
from velatura.merging.bake.fold import LayerChange, fit_layers, measure_fits
from velatura.merging.bake.hypernet_maps import (
    KV_INDICES,
    check_no_overlays_attached,
    hypernet_maps,
    prepare_hypernetwork,
)
from velatura.merging.bake.report import BakeReport
from velatura.overlays.overlay import Overlay

linalg: Any = torch.linalg  # which has no types


@dataclass(frozen=True)
class LowRankChange:
    """A change of a weight, up @ down; up: (out features, rank), down: (rank, in features)."""

    up: Tensor
    down: Tensor

    @property
    def product(self) -> Tensor:
        """The change itself, (out features, in features)."""
        return self.up @ self.down


@torch.no_grad()
def lora_from_hypernetwork(
    overlay: Overlay,
    base: Base,
    *,
    rank: int = 32,
    strength: float = 1.0,
    prompts: Sequence[str] | None = None,
    steps: int = CALIBRATION_STEPS,
    on_step: OnCalibrationStep | None = None,
) -> tuple[dict[str, LowRankChange], BakeReport]:
    """Turn a hypernetwork into low-rank changes of a base's to_k and to_v, by their names in the UNet.

    The linear part of what it does is kept as far as the rank allows, weighted by how much the contexts, recorded while
    the base paints, use it. A LoRA has no bias, so what V is shifted by in every context alike is lost. A LoRA laid on
    at strength s answers to the hypernetwork at s times the strength given here. prompts: as for bake.
    """
    if rank < 1:
        raise BadOverlay(f"a LoRA of rank {rank} cannot be: give 1 or more")
    hypernetworks = prepare_hypernetwork(base, overlay, strength)
    check_no_overlays_attached(base)
    maps_by_width = hypernet_maps(base, hypernetworks)
    calibration = calibrate(base, hypernetworks, maps_by_width, prompts=prompts, steps=steps, on_step=on_step)
    low_rank_changes: dict[str, LowRankChange] = {}
    changes: list[LayerChange] = []
    for name, layer, source, maps in fit_layers(base, maps_by_width, calibration, fit_intercept=False):
        change = LayerChange.from_maps(name, layer, source, *maps)
        moments = (calibration.split_moments(source, kv_index) for kv_index in KV_INDICES)
        second_moments = (fit.cc + choose.cc for fit, choose, _ in moments)
        k, v = (
            reduced_rank_regression(product, second_moment, rank)
            for product, second_moment in zip(change.products, second_moments, strict=True)
        )
        low_rank_changes |= {f"{name}.to_k": k, f"{name}.to_v": v}
        changes.append(replace(change, products=(k.product, v.product), shift=torch.zeros_like(change.shift)))
    lora_base = copy_with_changes(base, f"{base.name} + LoRA", changes)
    widths = [fit.model_copy(update={"exact": False}) for fit in measure_fits(maps_by_width, changes, calibration)]
    return low_rank_changes, measure_bake(
        base, lora_base, overlays=hypernetworks, widths=widths, calibration=calibration, steps=steps, rank=rank
    )


def reduced_rank_regression(change: Tensor, second_moment: Tensor, rank: int) -> LowRankChange:
    """The product of a rank that comes nearest to a change D of a weight, where it is used: reduced-rank regression.

    It minimises the sum over contexts of |D c - up down c|². With C the sum of c cᵀ, the minimum is U Uᵀ D, U being the
    first eigenvectors of D C Dᵀ (Izenman 1975, theorem 2): the truncated SVD of D C^½, times C^-½.
    """
    d, moment = change.double(), second_moment.double()
    moment = moment + 1e-9 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    vectors: Tensor = linalg.eigh(d @ moment @ d.T).eigenvectors[:, -rank:].flip(-1)  # the greatest first
    down = vectors.T @ d
    size = down.square().sum(dim=1, keepdim=True) ** 0.25
    size = torch.where(size > 0, size, 1)
    return LowRankChange(up=vectors * size.T, down=down / size)  # of one size, so that both survive half precision
