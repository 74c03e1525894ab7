"""What mixing dilutes: how much of each parent's difference from what they have in common is left in a merge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import NoEffect, WrongBase
from velatura.formats.ldm_keys import VAE_PREFIX
from velatura.merging.blocks import BASE, Blocks
from velatura.merging.formulas import Parents
from velatura.merging.merged import COUNTED
from velatura.merging.weights import Weights
from velatura.tensors import StrPath

AT_ONCE = 2**18  # values that stay in a processor's cache, and few enough to be summed in float32
TEXT = ("cond_stage_model.", "conditioner.")
WHOLE, EACH_OTHER = "whole", "each other"
PARTS = ("text", "UNet in", "UNet mid", "UNet out", "VAE")
UNET_PARTS = {"IN": "UNet in", "M": "UNet mid", "OUT": "UNet out"}


class Left(BaseModel):
    """What is left of a parent's difference p, the merge's own being r: left is r·p / |p|², 1 being all of it.

    cosine: between p and r, 1 where nothing else came in. size: |p| relative to the weights that it is a difference
    from. None where there is no difference at all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: str
    left: float | None = None
    cosine: float | None = None
    size: float | None = None


class PartDilution(BaseModel):
    """What is left of each parent in one part of the model, or in all of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    tensors: int
    parents: tuple[Left, ...]


class Dilution(BaseModel):
    """What is left of each parent's difference, part by part; against: from whom, or "each other"."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    against: str
    parts: tuple[PartDilution, ...]

    @property
    def whole(self) -> tuple[Left, ...]:
        """What is left in all parts together."""
        return next(each.parents for each in self.parts if each.part == WHOLE)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        hint = " (what both come from is not named: against)" if self.against == EACH_OTHER else ""
        yield f"left of each one's difference from {self.against}{hint}"
        for row in self.parts:
            yield f"  {row.part:9}" + ",  ".join(_said(each) for each in row.parents)


@dataclass
class Ledger:
    """Sums of products, tensor by tensor: all that a report needs, so that nothing has to be read twice.

    against: what the parents have in common; without it each is measured against the other.
    """

    names: tuple[str, ...]
    blocks: Blocks
    against: Weights | None = None
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @torch.no_grad()
    def hear(self, key: str, parents: Parents, made: Tensor) -> None:
        """Take a tensor of the merge and of its parents in."""
        if _part(key, self.blocks) is None:
            return
        first, second, _ = parents
        common = self._common(key, made)
        if self.against is not None and common is None:
            return
        pairs = [(first, second if common is None else common), (second, first if common is None else common)]
        self.sums[key] = torch.stack([_products(parent, origin, made) for parent, origin in pairs[: len(self.names)]])

    def report(self) -> Dilution:
        """What the sums tell."""
        by_part: dict[str, list[Tensor]] = {}
        for key, each in self.sums.items():
            for part in (_part(key, self.blocks) or "", WHOLE):
                by_part.setdefault(part, []).append(each)
        rows = [self._row(part, by_part[part]) for part in (*PARTS, WHOLE) if part in by_part]
        return Dilution(against=self.against.name if self.against else EACH_OTHER, parts=tuple(rows))

    def _common(self, key: str, made: Tensor) -> Tensor | None:
        if self.against is None or key not in self.against or self.against.sketch(key).shape != made.shape:
            return None
        return self.against[key]

    def _row(self, part: str, found: list[Tensor]) -> PartDilution:
        sums = torch.stack(found).sum(0)
        lefts = [_left(name, *map(float, row)) for name, row in zip(self.names, sums, strict=True)]
        return PartDilution(part=part, tensors=len(found), parents=tuple(lefts))


def dilution(
    made: Base | StrPath, parents: Sequence[Base | StrPath], *, against: Base | StrPath | None = None
) -> Dilution:
    """Tell what is left of one or two parents in what was made of them, all of them bases or files.

    against: what the parents were made of, such as sd15; without it each is measured against the other.
    """
    result, held = Weights.of(made), [Weights.of(each) for each in parents]
    if len(held) not in {1, 2} or (len(held) == 1 and against is None):
        raise NoEffect("what is left is told of two parents, or of one against what it was made of: name those")
    origin = None if against is None else origin_of(result, against)
    ledger = Ledger(tuple(each.name for each in held), Blocks.of(result), origin)
    for key in result:
        shared = all(key in each and each.sketch(key).shape == result.sketch(key).shape for each in held)
        if shared and result.sketch(key).is_floating_point() and not key.endswith(COUNTED):
            tensors = [each[key] for each in held]
            ledger.hear(key, Parents(tensors[0], tensors[-1], tensors[0]), result[key])
    if not ledger.sums:
        raise WrongBase(f"{result.name} shares no weights with {held[0].name}: give the models that it was made of")
    return ledger.report()


def origin_of(model: Weights, against: Base | StrPath) -> Weights:
    """Open what a model is said to come from; one that has few of its weights is refused."""
    origin = Weights.of(against)
    weights = [key for key in model if model.sketch(key).is_floating_point()]
    shared = sum(key in origin and origin.sketch(key).shape == model.sketch(key).shape for key in weights)
    if 2 * shared < len(weights):
        said = f"{origin.name} has only {shared} of the {len(weights)} weights of {model.name}"
        raise WrongBase(f"{said}, which cannot come from it: name the base that both were trained on")
    return origin


def _part(key: str, blocks: Blocks) -> str | None:
    """Which part of the model a tensor is of; None for averages and for what is no model's."""
    if key.startswith("model_ema."):
        return None
    place = blocks.place.get(key, BASE)
    if place != BASE:
        return UNET_PARTS[place.rstrip("0123456789")]
    if key.startswith(VAE_PREFIX):
        return "VAE"
    return "text" if key.startswith(TEXT) else None


def _products(parent: Tensor, origin: Tensor, made: Tensor) -> Tensor:
    """r·p, p·p, r·r, and o·o, for a parent's difference p from an origin o and the merge's r."""
    sums = torch.zeros(4, dtype=torch.float64)
    flat = [each.reshape(-1).to(made.device) for each in (parent, origin, made)]
    for start in range(0, made.numel(), AT_ONCE):
        there, from_, result = (each[start : start + AT_ONCE].float() for each in flat)
        p, r = there - from_, result - from_
        sums += torch.stack([r @ p, p @ p, r @ r, from_ @ from_]).double().cpu()
    return sums


def _left(name: str, product: float, square: float, made: float, origin: float) -> Left:
    if not square:
        return Left(parent=name)
    cosine = product / (square * made) ** 0.5 if made else 0.0
    return Left(parent=name, left=product / square, cosine=cosine, size=(square / origin) ** 0.5 if origin else None)


def _said(found: Left) -> str:
    if found.left is None:
        return f"{found.parent} has none"
    return f"{found.parent} {found.left:.1%} (cosine {found.cosine:.3f})"
