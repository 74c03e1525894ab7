"""A LoRA out of the difference of two models: what one has otherwise than the other, as far as low ranks go."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.base.base import Base
from velatura.card import Card
from velatura.errors import BadOverlay, NoEffect, WrongBase
from velatura.formats.nature import nature_of
from velatura.library.hashes import Hashes
from velatura.merging.factors import nearest
from velatura.merging.parts import Parts, place_of
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora import Lora
from velatura.overlays.strength import writable
from velatura.tensors import StrPath

Model = Base | StrPath
OnLayer = Callable[[int, int], None]  # how many are done, and how many there are

RANK = 32
WHOLE = "whole"
PLACES = ("text", "UNet in", "UNet mid", "UNet out")


class PartError(BaseModel):
    """How near a LoRA comes to the difference of two models in one part of them, or in all.

    layers, ranks: of the LoRA, the least and the largest. missed: what is lost of the difference's size, 1 being all;
    left_out: how much of it lies in norms, biases and tables, where a LoRA changes nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    layers: int
    ranks: tuple[int, int] = (0, 0)
    missed: float | None = None
    left_out: float | None = None

    def __str__(self) -> str:
        if self.missed is None or self.left_out is None:
            return f"{self.part:9}no difference"
        low, high = self.ranks
        ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
        said = f"{self.part:9}{self.layers} layers of {ranks}, {self.missed:.1%} of the difference missed"
        return f"{said}, {self.left_out:.1%} where a LoRA cannot be" if self.left_out >= 5e-4 else said


class ExtractReport(BaseModel):
    """How near a LoRA comes to what one model has otherwise than another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    other: str
    parts: tuple[PartError, ...]

    @property
    def whole(self) -> PartError:
        """The figures of all parts together."""
        return self.parts[-1]

    def __str__(self) -> str:
        return "\n".join([f"{self.other} less {self.base} as a LoRA", *(f"  {each}" for each in self.parts)])


@torch.no_grad()
def extract(
    base: Model,
    other: Model,
    rank: int | None = None,
    *,
    tolerance: float | None = None,
    conv_rank: int | None = None,
    text: bool = True,
    name: str = "",
    on_layer: OnLayer | None = None,
) -> Lora:
    """Turn what another model has otherwise than a base into a LoRA for that base; bases or files, read layer by layer.

    rank: of each layer, 32 by default; tolerance: the least rank of each layer that misses no more of its change, rank
    being the most; conv_rank: of convolutions larger than 1x1, rank if not given, none of them where it is 0.
    text: of the text towers too. See missed for how near it comes.
    """
    rank = RANK if rank is None and tolerance is None else rank
    _refuse_impossible(rank, conv_rank, tolerance)
    ours, theirs = Parts.of(base), Parts.of(other)
    layers = ours.layers(text=text)
    _refuse_strangers(ours, theirs)
    made: dict[str, Delta] = {}
    with writable():
        for done, (weight, own) in enumerate(layers.items(), start=1):
            change = _change(ours, theirs, weight)
            large = change.ndim == 4 and change.shape[2:].numel() > 1
            most = conv_rank if large and conv_rank is not None else rank
            if most != 0 and (found := nearest(change, most, tolerance)):
                made[own] = found
            if on_layer:
                on_layer(done, len(layers))
        if not made:
            raise NoEffect(f"{theirs.name} has all weights of {ours.name}: there is no difference to make a LoRA of")
        return Lora(_card(base, ours, theirs, name), made)


@torch.no_grad()
def missed(lora: Lora, base: Model, other: Model) -> ExtractReport:
    """Tell how near a LoRA on a base comes to another model, part by part."""
    ours, theirs = Parts.of(base), Parts.of(other)
    _refuse_strangers(ours, theirs)
    layers, deltas = ours.layers(), lora.layers
    sums: dict[str, Tensor] = {}
    ranks: dict[str, list[int]] = {}
    for name in ours.sources:
        change, delta = _change(ours, theirs, name), deltas.get(layers.get(name, ""))
        rest = change if delta is None else change - delta.to(change.device).change(ours.read(name))
        told = torch.stack([_energy(rest), _energy(change), _energy(change) * (name not in layers)])
        for part in (place_of(name), WHOLE):
            sums[part] = sums.get(part, torch.zeros(3, dtype=torch.float64)) + told
            ranks.setdefault(part, []).extend([delta.rank or 0] if delta else [])
    rows = [_row(part, ranks[part], sums[part]) for part in (*PLACES, WHOLE) if part in sums]
    return ExtractReport(base=ours.name, other=theirs.name, parts=tuple(rows))


def _change(ours: Parts, theirs: Parts, name: str) -> Tensor:
    before = ours.read(name)
    return theirs.read(name).to(before.device) - before


def _row(part: str, ranks: list[int], sums: Tensor) -> PartError:
    lost, whole, out = map(float, sums)
    row = PartError(part=part, layers=len(ranks), ranks=(min(ranks), max(ranks)) if ranks else (0, 0))
    if not whole:
        return row
    return row.model_copy(update={"missed": (lost / whole) ** 0.5, "left_out": (out / whole) ** 0.5})


def _energy(tensor: Tensor) -> Tensor:
    return tensor.double().square().sum().cpu()


def _refuse_strangers(ours: Parts, theirs: Parts) -> None:
    """Refuse two models of different structure, by the first tensor that tells."""
    for name in ours.sources.keys() | theirs.sources.keys():
        both = name in ours.sources and name in theirs.sources
        if not both or ours.sketch(name).shape != theirs.sketch(name).shape:
            raise WrongBase(f"{theirs.name} and {ours.name} differ in {name}: give two models of one family")


def _refuse_impossible(rank: int | None, conv_rank: int | None, tolerance: float | None) -> None:
    if (rank is not None and rank < 1) or (conv_rank is not None and conv_rank < 0):
        raise BadOverlay(f"a LoRA of rank {rank}, of convolutions {conv_rank}, cannot be: give 1 or more")
    if tolerance is not None and not 0 < tolerance < 1:
        raise BadOverlay(f"a tolerance of {tolerance:g} leaves nothing to choose: give one between 0 and 1")


def _card(base: Model, ours: Parts, theirs: Parts, name: str) -> Card:
    if isinstance(base, Base):
        family, digits = base.family.name, base.hash
    else:
        path = ours.weights.path
        assert path is not None
        family = nature_of(path).card.family
        digits = Hashes.of(path).sha256[:10] if path.is_file() else ""
    note = f"what {theirs.name} has otherwise than {ours.name}"
    return Card(kind=Lora.kind, name=name or theirs.name, family=family, base=ours.name, base_hash=digits, note=note)
