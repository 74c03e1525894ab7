"""Turn a hypernetwork into a LoRA: approximate what it does to K and V by low-rank changes of to_k and to_v."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.merging.bake.bake import copy_with_changes, measure_bake
from velatura.merging.bake.calibration import CALIBRATION_STEPS, OnCalibrationStep, calibrate
from velatura.merging.bake.fold import LayerChange, fit_layers, measure_fits
from velatura.merging.bake.hypernet_maps import KV_INDICES, hypernet_maps
from velatura.merging.bake.inputs import check_no_overlays_attached, prepare_hypernetwork
from velatura.merging.bake.report import BakeReport
from velatura.merging.lora.svd import check_rank
from velatura.overlays.overlay import Overlay

linalg: Any = torch.linalg  # torch.linalg has no type annotations


@dataclass(frozen=True)
class LowRankChange:
    """A change up @ down of a weight; up: (out features, rank), down: (rank, in features)."""

    up: Tensor
    down: Tensor

    @property
    def product(self) -> Tensor:
        """Change as a matrix, (out features, in features)."""
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
    """Turn a hypernetwork into low-rank changes of the base's to_k and to_v.

    The linear part of its effect is kept as far as the rank allows, weighted by how much the contexts use it that are
    recorded while the base denoises calibration prompts. A LoRA has no bias, so a shift of V that is the same for all
    contexts is lost.

    Args:
        overlay: A hypernetwork or a composition of them.
        base: The base that the LoRA is for.
        rank: The rank of each layer.
        strength: The strength of the hypernetwork that the LoRA has at strength 1.
        prompts: At least four calibration prompts; built-in ones by default.
        steps: Steps of each calibration picture.
        on_step: Called after each step with how many are done, and how many there are.

    Returns:
        The changes by the names of their layers in the UNet, and a report of the errors on held-out prompts.

    Raises:
        BadOverlay: The overlay is not a hypernetwork, or the rank is below 1.
        BadRecipe: There are fewer than four prompts.
        UnsupportedBase: Overlays are attached to the base.
    """
    check_rank(rank)
    hypernetworks = prepare_hypernetwork(base, overlay, strength)
    check_no_overlays_attached(base)
    maps_by_width = hypernet_maps(base, hypernetworks)
    calibration = calibrate(base, hypernetworks, maps_by_width, prompts=prompts, steps=steps, on_step=on_step)
    low_rank_changes: dict[str, LowRankChange] = {}
    changes: list[LayerChange] = []
    for fit in fit_layers(base, maps_by_width, calibration, fit_intercept=False):
        change = LayerChange.from_fit(fit)
        low_ranks: list[LowRankChange] = []
        for kv_index in KV_INDICES:
            fitting, choosing, _ = calibration.split_moments(fit.source, kv_index)
            low_ranks.append(reduced_rank_regression(change.products[kv_index], fitting.cc + choosing.cc, rank))
        k, v = low_ranks
        low_rank_changes |= {f"{fit.name}.to_k": k, f"{fit.name}.to_v": v}
        changes.append(replace(change, products=(k.product, v.product), shift=torch.zeros_like(change.shift)))
    lora_base = copy_with_changes(base, f"{base.name} + LoRA", changes)
    widths = [fit.model_copy(update={"exact": False}) for fit in measure_fits(maps_by_width, changes, calibration)]
    report = measure_bake(
        base, lora_base, overlays=hypernetworks, widths=widths, calibration=calibration, steps=steps, rank=rank
    )
    return low_rank_changes, report


def reduced_rank_regression(change: Tensor, second_moment: Tensor, rank: int) -> LowRankChange:
    """Return the low-rank change that is nearest to a change D of a weight on the contexts c that it multiplies.

    It minimises the sum over contexts of |D c - up down c|². With C the sum of c cᵀ, the minimum is U Uᵀ D, U being the
    first eigenvectors of D C Dᵀ (Izenman 1975, theorem 2): the truncated SVD of D C^½, times C^-½.

    Args:
        change: D, (out features, in features).
        second_moment: C, (in features, in features).
        rank: The rank; it is cut to the size of the layer.

    Returns:
        The change, in float64. In each rank `up` and `down` have the same norm, so that both survive half precision.
    """
    d, moment = change.double(), second_moment.double()
    moment = moment + 1e-9 * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    vectors: Tensor = linalg.eigh(d @ moment @ d.T).eigenvectors[:, -rank:].flip(-1)  # the largest eigenvalue first
    down = vectors.T @ d
    size = down.square().sum(dim=1, keepdim=True) ** 0.25
    size = torch.where(size > 0, size, 1)
    return LowRankChange(up=vectors * size.T, down=down / size)
