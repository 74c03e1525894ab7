"""Measure how much of each parent's difference from their common base is left in a merge (users call it dilution)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.arguments import check_arguments
from velatura.errors import NoEffect, WrongBase
from velatura.formats.checkpoints.ldm_keys import VAE_PREFIX
from velatura.merging.checkpoints.block_weights import BASE_BLOCK, EMA_PREFIX, UNetBlocks
from velatura.merging.checkpoints.lazy_merge import POSITION_IDS
from velatura.merging.checkpoints.modes import Parents
from velatura.merging.checkpoints.weights import ModelSource, ModelWeights
from velatura.merging.measures import MODEL_PARTS, TEXT_PART, UNET_PARTS, VAE_PART, WHOLE_MODEL

VALUES_PER_CHUNK = 2**18  # fits a processor's cache, and is few enough to be summed in float32
TEXT_ENCODER_PREFIXES = ("cond_stage_model.", "conditioner.")
EACH_OTHER = "each other"  # in place of a common base


class ParentRetention(BaseModel):
    """Share of one parent that is left in a merge.

    With p the parent's difference from the common base and r the merge's:

    Attributes:
        parent: The parent's name.
        left: r·p / |p|², 1 if all of it is left; None if p is 0.
        cosine: The cosine of the angle between p and r, 1 if nothing else was mixed in.
        size: |p| relative to the size of the common base's weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: str
    left: float | None = None
    cosine: float | None = None
    size: float | None = None

    def __str__(self) -> str:
        if self.left is None:
            return f"{self.parent} has none"
        return f"{self.parent} {self.left:.1%} (cosine {self.cosine:.3f})"


class PartRetention(BaseModel):
    """Shares of the parents that are left in one part of the model, or in all of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    tensors: int
    parents: tuple[ParentRetention, ...]


class RetentionReport(BaseModel):
    """Shares of the parents that are left in a merge, part by part.

    Attributes:
        against: The name of the common base, "each other" if it is unknown.
        parts: One row for each part of the model, and the last one for all of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: str
    parts: tuple[PartRetention, ...]

    @property
    def whole(self) -> tuple[ParentRetention, ...]:
        """Shares of the parents in the whole model."""
        return next(row.parents for row in self.parts if row.part == WHOLE_MODEL)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        hint = " (name their common base with against for better figures)" if self.against == EACH_OTHER else ""
        yield f"how much is left of each model's difference from {self.against}{hint}"
        for row in self.parts:
            yield f"  {row.part:9}" + ",  ".join(map(str, row.parents))


@dataclass
class RetentionMeter:
    """Sums up inner products tensor by tensor while a merge is computed, so that no file is read twice.

    Attributes:
        names: The names of the one or two parents.
        blocks: The blocks of the UNet, by which parts are told apart.
        ancestor: The common base of the parents; without it each parent is measured against the other.
        sums: For each key (parents, 4): r·p, p·p, r·r and o·o, o being the common base's tensor.
    """

    names: tuple[str, ...]
    blocks: UNetBlocks
    ancestor: ModelWeights | None = None
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @torch.no_grad()
    def record(self, key: str, parents: Parents, merged: Tensor) -> None:
        """Add a tensor of the merge and its parents; a tensor that the common base lacks is left out."""
        if _part_of_key(key, self.blocks) is None:
            return
        origins = (parents.second, parents.first)
        if self.ancestor is not None:
            if key not in self.ancestor or self.ancestor.meta_tensor(key).shape != merged.shape:
                return
            ancestor_tensor = self.ancestor[key]
            origins = (ancestor_tensor, ancestor_tensor)
        pairs = list(zip((parents.first, parents.second), origins, strict=True))[: len(self.names)]
        self.sums[key] = torch.stack([_inner_products(parent, origin, merged) for parent, origin in pairs])

    def report(self) -> RetentionReport | None:
        """Return the report of what was recorded, None if nothing was."""
        if not self.sums:
            return None
        by_part: dict[str | None, list[Tensor]] = {WHOLE_MODEL: list(self.sums.values())}
        for key, products in self.sums.items():
            by_part.setdefault(_part_of_key(key, self.blocks), []).append(products)
        rows = [self._row(part, by_part[part]) for part in (*MODEL_PARTS, WHOLE_MODEL) if part in by_part]
        return RetentionReport(against=self.ancestor.name if self.ancestor else EACH_OTHER, parts=tuple(rows))

    def _row(self, part: str, part_sums: list[Tensor]) -> PartRetention:
        sums = torch.stack(part_sums).sum(0)
        parents = [_parent_retention(name, *map(float, row)) for name, row in zip(self.names, sums, strict=True)]
        return PartRetention(part=part, tensors=len(part_sums), parents=tuple(parents))


@check_arguments()
def measure_retention(
    merged: ModelSource, parents: Sequence[ModelSource], *, against: ModelSource | None = None
) -> RetentionReport:
    """Measure how much of its parents is left in a merge, which any program may have made.

    Args:
        merged: The merge: a base, a checkpoint file or a diffusers folder.
        parents: Its two parents, or one if `against` is given.
        against: The model that the parents were trained from; without it each parent is measured against the other.

    Raises:
        NoEffect: The count of parents is wrong.
        WrongBase: The models are of different structure.
    """
    merged_weights = ModelWeights.from_model(merged)
    parent_weights = [ModelWeights.from_model(parent) for parent in parents]
    if len(parent_weights) not in {1, 2} or (len(parent_weights) == 1 and against is None):
        raise NoEffect(
            f"{len(parent_weights)} given: name two parents, or one and the model that it was trained from (against)"
        )
    ancestor = None if against is None else open_ancestor(merged_weights, against)
    names = tuple(parent.name for parent in parent_weights)
    meter = RetentionMeter(names, UNetBlocks.from_keys(merged_weights), ancestor)
    for key in merged_weights:
        if _is_shared_weight(key, merged_weights, parent_weights):
            tensors = [parent[key] for parent in parent_weights]
            meter.record(key, Parents(tensors[0], tensors[-1], tensors[0]), merged_weights[key])
    report = meter.report()
    if report is None:
        raise WrongBase(f"{merged_weights.name} shares no weights with {names[0]}: give the models it was made from")
    return report


def _is_shared_weight(key: str, merged: ModelWeights, parents: Sequence[ModelWeights]) -> bool:
    merged_tensor = merged.meta_tensor(key)
    if key.endswith(POSITION_IDS) or not merged_tensor.is_floating_point():
        return False
    return all(key in parent and parent.meta_tensor(key).shape == merged_tensor.shape for parent in parents)


def open_ancestor(model: ModelWeights, ancestor: ModelSource) -> ModelWeights:
    """Open the common base of models.

    Raises:
        WrongBase: It has fewer than half of a model's weights, so the model cannot be trained from it.
    """
    ancestor_weights = ModelWeights.from_model(ancestor)
    weights = [key for key in model if model.meta_tensor(key).is_floating_point()]
    shared = 0
    for key in weights:
        if key in ancestor_weights and ancestor_weights.meta_tensor(key).shape == model.meta_tensor(key).shape:
            shared += 1
    if 2 * shared < len(weights):
        message = f"{ancestor_weights.name} has only {shared} of the {len(weights)} weights of {model.name}"
        raise WrongBase(f"{message}, which cannot come from it: name the base that both were trained from")
    return ancestor_weights


def _part_of_key(key: str, blocks: UNetBlocks) -> str | None:
    """Return the part of the model that a tensor belongs to, None for EMA weights and other extras."""
    if key.startswith(EMA_PREFIX):
        return None
    block = blocks.block_of(key)
    if block != BASE_BLOCK:
        return UNET_PARTS[block.side]
    if key.startswith(VAE_PREFIX):
        return VAE_PART
    return TEXT_PART if key.startswith(TEXT_ENCODER_PREFIXES) else None


def _inner_products(parent: Tensor, origin: Tensor, merged: Tensor) -> Tensor:
    """Return r·p, p·p, r·r and o·o, for the differences p of the parent and r of the merge from an origin o."""
    sums = torch.zeros(4, dtype=torch.float64)
    flat_parent, flat_origin, flat_merged = (
        tensor.reshape(-1).to(merged.device) for tensor in (parent, origin, merged)
    )
    for start in range(0, merged.numel(), VALUES_PER_CHUNK):
        chunk = slice(start, start + VALUES_PER_CHUNK)
        o = flat_origin[chunk].float()
        p, r = flat_parent[chunk].float() - o, flat_merged[chunk].float() - o
        sums += torch.stack([r @ p, p @ p, r @ r, o @ o]).double().cpu()
    return sums


def _parent_retention(
    name: str, product: float, parent_square: float, merged_square: float, origin_square: float
) -> ParentRetention:
    if not parent_square:
        return ParentRetention(parent=name)
    cosine = product / (parent_square * merged_square) ** 0.5 if merged_square else 0.0
    return ParentRetention(
        parent=name,
        left=product / parent_square,
        cosine=cosine,
        size=(parent_square / origin_square) ** 0.5 if origin_square else None,
    )
