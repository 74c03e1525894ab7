"""Hypernetworks as LoRAs: what they do to K and V, as far as products of a low rank can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import BadOverlay
from velatura.merging.bake import STEPS, changed_copy, report
from velatura.merging.chain import PARTS, chains, laid_on, refuse_laid_over
from velatura.merging.fold import LayerChange, fits, mapped_layers
from velatura.merging.record import OnStep, record
from velatura.merging.report import BakeReport
from velatura.overlays.overlay import Overlay

linalg: Any = torch.linalg  # which has no types


@dataclass(frozen=True)
class LowRank:
    """A change of a weight, up @ down; up: (out features, rank), down: (rank, in features)."""

    up: Tensor
    down: Tensor

    @property
    def product(self) -> Tensor:
        """The change itself, (out features, in features)."""
        return self.up @ self.down


@torch.no_grad()
def as_lora(
    overlay: Overlay,
    base: Base,
    *,
    rank: int = 32,
    strength: float = 1.0,
    prompts: Sequence[str] | None = None,
    steps: int = STEPS,
    on_step: OnStep | None = None,
) -> tuple[dict[str, LowRank], BakeReport]:
    """Turn a hypernetwork into low-rank changes of a base's to_k and to_v, by their names in the UNet.

    The linear part of what it does is kept as far as the rank allows, weighted by how much the contexts, recorded while
    the base paints, use it. A LoRA has no bias, so what V is shifted by in every context alike is lost. A LoRA laid on
    at strength s answers to the hypernetwork at s times the strength given here. prompts: as for bake.
    """
    if rank < 1:
        raise BadOverlay(f"a LoRA of rank {rank} cannot be: give 1 or more")
    laid = laid_on(base, overlay, strength)
    refuse_laid_over(base)
    by_width = chains(base, laid)
    heard = record(base, laid, by_width, prompts=prompts, steps=steps, on_step=on_step)
    made: dict[str, LowRank] = {}
    changes: list[LayerChange] = []
    for name, layer, source, maps in mapped_layers(base, by_width, heard, shifted=False):
        whole = LayerChange.of(name, layer, source, *maps)
        moments = (heard.of(source, part) for part in PARTS)
        used = (fit.cc + choose.cc for fit, choose, _ in moments)
        k, v = (low_rank(product, each, rank) for product, each in zip(whole.products, used, strict=True))
        made |= {f"{name}.to_k": k, f"{name}.to_v": v}
        changes.append(replace(whole, products=(k.product, v.product), shift=torch.zeros_like(whole.shift)))
    laid_over = changed_copy(base, f"{base.name} + LoRA", changes)
    widths = [each.model_copy(update={"exact": False}) for each in fits(by_width, changes, heard)]
    return made, report(base, laid_over, laid=laid, widths=widths, heard=heard, steps=steps, rank=rank)


def low_rank(change: Tensor, second_moment: Tensor, rank: int) -> LowRank:
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
    return LowRank(up=vectors * size.T, down=down / size)  # of one size, so that both survive half precision
