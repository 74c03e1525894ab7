"""What mixing dilutes: how much of each parent's difference from what they have in common is left in a merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import NoEffect, WrongBase
from velatura.formats.checkpoints.ldm_keys import VAE_PREFIX
from velatura.merging.checkpoints.block_weights import BASE_BLOCK, UNetBlocks
from velatura.merging.checkpoints.lazy_merge import POSITION_IDS
from velatura.merging.checkpoints.modes import Parents
from velatura.merging.checkpoints.weights import ModelWeights
from velatura.tensors import StrPath

VALUES_PER_CHUNK = 2**18  # values that stay in a processor's cache, and few enough to be summed in float32
TEXT_ENCODER_PREFIXES = ("cond_stage_model.", "conditioner.")
WHOLE_MODEL, EACH_OTHER = "whole", "each other"
MODEL_PARTS = ("text", "UNet in", "UNet mid", "UNet out", "VAE")
UNET_PARTS = {"IN": "UNet in", "M": "UNet mid", "OUT": "UNet out"}


class ParentRetention(BaseModel):
    """What is left of a parent's difference p, the merge's own being r: left is r·p / |p|², 1 being all of it.

    cosine: between p and r, 1 where nothing else came in. size: |p| relative to the weights that it is a difference
    from. None where there is no difference at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: str
    left: float | None = None
    cosine: float | None = None
    size: float | None = None


class PartRetention(BaseModel):
    """What is left of each parent in one part of the model, or in all of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    tensors: int
    parents: tuple[ParentRetention, ...]


class RetentionReport(BaseModel):
    """What is left of each parent's difference, part by part; against: from whom, or "each other"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: str
    parts: tuple[PartRetention, ...]

    @property
    def whole(self) -> tuple[ParentRetention, ...]:
        """What is left in all parts together."""
        return next(row.parents for row in self.parts if row.part == WHOLE_MODEL)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        hint = " (what both come from is not named: against)" if self.against == EACH_OTHER else ""
        yield f"left of each one's difference from {self.against}{hint}"
        for row in self.parts:
            yield f"  {row.part:9}" + ",  ".join(_format_parent(parent) for parent in row.parents)


@dataclass
class RetentionMeter:
    """Sums of products, tensor by tensor: all that a report needs, so that nothing has to be read twice.

    against: what the parents have in common; without it each is measured against the other.
    """

    names: tuple[str, ...]
    blocks: UNetBlocks
    against: ModelWeights | None = None
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @torch.no_grad()
    def record(self, key: str, parents: Parents, merged: Tensor) -> None:
        """Take a tensor of the merge and of its parents in."""
        if _model_part(key, self.blocks) is None:
            return
        first, second, _ = parents
        ancestor = self._ancestor_tensor(key, merged)
        if self.against is not None and ancestor is None:
            return
        pairs = [(first, second if ancestor is None else ancestor), (second, first if ancestor is None else ancestor)]
        self.sums[key] = torch.stack(
            [_inner_products(parent, ancestor, merged) for parent, ancestor in pairs[: len(self.names)]]
        )

    def report(self) -> RetentionReport:
        """What the sums tell."""
        by_part: dict[str, list[Tensor]] = {}
        for key, products in self.sums.items():
            for part in (_model_part(key, self.blocks) or "", WHOLE_MODEL):
                by_part.setdefault(part, []).append(products)
        rows = [self._row(part, by_part[part]) for part in (*MODEL_PARTS, WHOLE_MODEL) if part in by_part]
        return RetentionReport(against=self.against.name if self.against else EACH_OTHER, parts=tuple(rows))

    def _ancestor_tensor(self, key: str, merged: Tensor) -> Tensor | None:
        if self.against is None or key not in self.against or self.against.meta_tensor(key).shape != merged.shape:
            return None
        return self.against[key]

    def _row(self, part: str, part_sums: list[Tensor]) -> PartRetention:
        sums = torch.stack(part_sums).sum(0)
        parents = [_parent_retention(name, *map(float, row)) for name, row in zip(self.names, sums, strict=True)]
        return PartRetention(part=part, tensors=len(part_sums), parents=tuple(parents))


def measure_retention(
    merged: Base | StrPath, parents: Sequence[Base | StrPath], *, against: Base | StrPath | None = None
) -> RetentionReport:
    """Tell what is left of one or two parents in what was made of them, all of them bases or files.

    against: what the parents were made of, such as sd15; without it each is measured against the other.
    """
    result, parent_weights = ModelWeights.from_model(merged), [ModelWeights.from_model(parent) for parent in parents]
    if len(parent_weights) not in {1, 2} or (len(parent_weights) == 1 and against is None):
        raise NoEffect("what is left is told of two parents, or of one against what it was made of: name those")
    ancestor = None if against is None else open_ancestor(result, against)
    meter = RetentionMeter(tuple(parent.name for parent in parent_weights), UNetBlocks.from_keys(result), ancestor)
    for key in result:
        shared = all(
            key in parent and parent.meta_tensor(key).shape == result.meta_tensor(key).shape
            for parent in parent_weights
        )
        if shared and result.meta_tensor(key).is_floating_point() and not key.endswith(POSITION_IDS):
            tensors = [parent[key] for parent in parent_weights]
            meter.record(key, Parents(tensors[0], tensors[-1], tensors[0]), result[key])
    if not meter.sums:
        raise WrongBase(
            f"{result.name} shares no weights with {parent_weights[0].name}: give the models that it was made of"
        )
    return meter.report()


def open_ancestor(model: ModelWeights, against: Base | StrPath) -> ModelWeights:
    """Open what a model is said to come from; one that has few of its weights is refused."""
    ancestor = ModelWeights.from_model(against)
    weights = [key for key in model if model.meta_tensor(key).is_floating_point()]
    shared = sum(key in ancestor and ancestor.meta_tensor(key).shape == model.meta_tensor(key).shape for key in weights)
    if 2 * shared < len(weights):
        message = f"{ancestor.name} has only {shared} of the {len(weights)} weights of {model.name}"
        raise WrongBase(f"{message}, which cannot come from it: name the base that both were trained on")
    return ancestor


def _model_part(key: str, blocks: UNetBlocks) -> str | None:
    """Which part of the model a tensor is of; None for averages and for what is no model's."""
    if key.startswith("model_ema."):
        return None
    block = blocks.block_by_key.get(key, BASE_BLOCK)
    if block != BASE_BLOCK:
        return UNET_PARTS[block.rstrip("0123456789")]
    if key.startswith(VAE_PREFIX):
        return "VAE"
    return "text" if key.startswith(TEXT_ENCODER_PREFIXES) else None


def _inner_products(parent: Tensor, ancestor: Tensor, merged: Tensor) -> Tensor:
    """r·p, p·p, r·r, and o·o, for a parent's difference p from an origin o and the merge's r."""
    sums = torch.zeros(4, dtype=torch.float64)
    flat = [tensor.reshape(-1).to(merged.device) for tensor in (parent, ancestor, merged)]
    for start in range(0, merged.numel(), VALUES_PER_CHUNK):
        parent_chunk, ancestor_chunk, merged_chunk = (
            tensor[start : start + VALUES_PER_CHUNK].float() for tensor in flat
        )
        p, r = parent_chunk - ancestor_chunk, merged_chunk - ancestor_chunk
        sums += torch.stack([r @ p, p @ p, r @ r, ancestor_chunk @ ancestor_chunk]).double().cpu()
    return sums


def _parent_retention(
    name: str, product: float, parent_square: float, merged_square: float, ancestor_square: float
) -> ParentRetention:
    if not parent_square:
        return ParentRetention(parent=name)
    cosine = product / (parent_square * merged_square) ** 0.5 if merged_square else 0.0
    return ParentRetention(
        parent=name,
        left=product / parent_square,
        cosine=cosine,
        size=(parent_square / ancestor_square) ** 0.5 if ancestor_square else None,
    )


def _format_parent(retention: ParentRetention) -> str:
    if retention.left is None:
        return f"{retention.parent} has none"
    return f"{retention.parent} {retention.left:.1%} (cosine {retention.cosine:.3f})"
