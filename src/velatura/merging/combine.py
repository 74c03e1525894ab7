"""Several LoRAs as one, or one at another rank."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import cast

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.card import Card
from velatura.errors import BadOverlay, NoEffect, VelaturaWarning, WrongBase
from velatura.merging.factors import delta as delta_of
from velatura.merging.factors import narrowed, nearest
from velatura.merging.summed import number
from velatura.overlays.deltas.biased import BIAS, BiasedLowRank
from velatura.overlays.deltas.delta import Delta, Shape
from velatura.overlays.deltas.low_rank import CORE, DOWN, UP, LowRank
from velatura.overlays.deltas.product import MAGNITUDE, Product
from velatura.overlays.deltas.whole import Full, Norm
from velatura.overlays.kohya import UNET, kohya_names
from velatura.overlays.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength, writable
from velatura.overlays.target import Target

Acting = Sequence[tuple[Delta, float]]


@torch.no_grad()
def combine(
    overlays: Iterable[tuple[Overlay, float | Strength]],
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    base: Base | None = None,
    name: str = "",
) -> Lora:
    """Write LoRAs at their strengths as one, which at strength 1 does what all of them do together.

    Exact as long as neither rank nor tolerance is given: ranks are put side by side, and changes that have none stand
    whole. Else each layer has that rank, or the least that misses no more of its change than the tolerance. base: for
    changes that hang on the weights they change, as DoRA's do; those are refused without it. Embeddings that come with
    them come along.
    """
    if rank is not None and rank < 1:
        raise BadOverlay(f"a LoRA of rank {rank} cannot be: give 1 or more")
    if tolerance is not None and not 0 < tolerance < 1:
        raise BadOverlay(f"a tolerance of {tolerance:g} leaves nothing to choose: give one between 0 and 1")
    laid = [(_lora(overlay), strength) for overlay, strength in overlays]
    if not laid:
        raise NoEffect("there is nothing to write as one: give LoRAs")
    card = _card(laid, name)
    place = None if base is None else _Place.of(base, [overlay for overlay, _ in laid])
    listed = [(overlay.layers, _Asked(overlay, strength, place)) for overlay, strength in laid]
    made: dict[str, Delta] = {}
    with writable():
        for own in dict.fromkeys(own for layers, _ in listed for own in layers):
            acting = [(layers[own], at) for layers, asked in listed if own in layers and (at := asked.at(own))]
            weight = place.weight(own) if place else None
            if acting and (found := _one(own, acting, weight, rank, tolerance)):
                made[own] = found
        if not made:
            raise NoEffect("nothing is left of the LoRAs at these strengths: give some other than 0")
        lora = Lora(card, made)
        lora.bundled = _bundled([overlay for overlay, _ in laid])
        return lora


def _bundled(loras: Iterable[Lora]) -> dict[str, dict[str, Tensor]]:
    """The embeddings of all of them, which have no strength; a word that two bring stays the first's."""
    made: dict[str, dict[str, Tensor]] = {}
    for lora in loras:
        for word, vectors in lora.bundled.items():
            known = made.setdefault(word, vectors)
            if known.keys() != vectors.keys() or not all(
                torch.equal(known[key], each) for key, each in vectors.items()
            ):
                said = f"{lora.card.name or 'a LoRA'} brings another embedding {word[:40]!r} than one before it"
                warnings.warn(f"{said}, whose is kept", VelaturaWarning, stacklevel=4)
    return made


def _one(own: str, acting: Acting, weight: Tensor | None, rank: int | None, tolerance: float | None) -> Delta | None:
    """What several changes of one layer are together."""
    shape = _shape(own, acting, weight)
    lowest = [_factors(delta, at) for delta, at in acting]
    if None not in lowest:
        pairs = cast("list[tuple[Tensor, Tensor]]", lowest)
        place = pairs[0][0].device
        up, down = (torch.cat([each[half].to(place) for each in pairs], 1 - half) for half in (0, 1))
        if rank is not None or tolerance is not None:
            up, down = narrowed(up, down, rank, tolerance)
        return delta_of(up, down, shape)
    whole = reduce(add, (delta.change(_read(own, delta, weight, shape), at).cpu() for delta, at in acting))
    biases = [each.cpu() for delta, at in acting if (each := delta.bias_change(None, at)) is not None]
    if any(isinstance(delta, Norm) for delta, _ in acting):
        return Norm.from_tensors({"w_norm": whole} | ({"b_norm": reduce(add, biases)} if biases else {}))
    small = None if rank is None and tolerance is None else nearest(whole, rank, tolerance)
    if small and biases:
        return BiasedLowRank.from_tensors(small.state_dict() | {BIAS: reduce(add, biases)})
    if small or not (biases or (rank is None and tolerance is None)):
        return small
    return Full.from_tensors({"diff": whole} | ({BIAS: reduce(add, biases)} if biases else {}))


def _factors(delta: Delta, at: float) -> tuple[Tensor, Tensor] | None:
    """Up at its scale and strength, and down flat; None of what is no plain product of two."""
    if type(delta) is not LowRank or delta.tensor(CORE) is not None:
        return None
    up, down = delta.of(UP).flatten(1), delta.of(DOWN).flatten(1)
    return up * delta.scale(up.shape[1]) * at, down


def _shape(own: str, acting: Acting, weight: Tensor | None) -> Shape:
    """The shape of the weight that all change; a matrix may stand for a convolution's, not the other way round."""
    if weight is not None:
        return tuple(weight.shape)
    shape = max((delta.shape for delta, _ in acting), key=len)
    if not all(delta.fits(torch.empty(shape, device="meta")) for delta, _ in acting):
        raise WrongBase(f"these LoRAs change {own[:80]} of different sizes: combine those of one family")
    return shape


def _read(own: str, delta: Delta, weight: Tensor | None, shape: Shape) -> Tensor:
    """The weight that a delta changes: any of its shape will do where it does not look at it."""
    if weight is not None:
        return weight.to(delta.tensors[0].device)
    if isinstance(delta, Full | Norm) or (isinstance(delta, Product) and delta.tensor(MAGNITUDE) is None):
        return torch.zeros(shape, device=delta.tensors[0].device)
    raise BadOverlay(f"what {delta.algorithm} does in {own[:80]} hangs on the base's weights: give the base")


@dataclass(frozen=True)
class _Place:
    """A base, and its names for layers by those in kohya's files."""

    target: Target
    names: Mapping[str, str]

    @classmethod
    def of(cls, base: Base, overlays: Iterable[Lora]) -> _Place:
        """See that the LoRAs are for the base."""
        place = Target.of(base)
        for overlay in overlays:
            if not overlay.deltas(place):
                raise WrongBase(f"{overlay.card} fits none of the layers of {base.name}: give a base it was made for")
        return cls(place, kohya_names(place))

    def weight(self, own: str) -> Tensor | None:
        """The weight of a layer, if the base has it."""
        return cast("Tensor", self.target.layer(self.names[own]).weight) if own in self.names else None


@dataclass(frozen=True)
class _Asked:
    """How strongly a LoRA is to count."""

    overlay: Lora
    strength: float | Strength
    place: _Place | None

    def at(self, own: str) -> float:
        """How strongly it counts in a layer."""
        one = self.strength
        if isinstance(one, Strength):
            one = one.unet if own.startswith(UNET) else one.text
        return number(one) * self._factor(own)

    def _factor(self, own: str) -> float:
        if not self.overlay.blocks:
            return 1.0
        if self.place is None:
            raise BadOverlay(f"the blocks of {self.overlay.card} have strengths of their own: give the base")
        return self.overlay.factor(self.place.target, self.place.names[own]) if own in self.place.names else 1.0


def _lora(overlay: Overlay) -> Lora:
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"{overlay.card} is no LoRA: only changes of weights are written as one; bake others")
    return overlay


def _card(laid: Sequence[tuple[Lora, float | Strength]], name: str) -> Card:
    first = laid[0][0].card
    families = {overlay.card.family for overlay, _ in laid if overlay.card.family}
    if len(families) > 1:
        raise WrongBase(f"these LoRAs are for {' and for '.join(sorted(families))}: combine those of one family")
    words = tuple(dict.fromkeys(word for overlay, _ in laid for word in overlay.card.trigger_words))[:100]
    made_of = ", ".join(f"{overlay.card.name or overlay.kind} at {_said(strength)}" for overlay, strength in laid)
    family = next(iter(families), "")
    return first.but(
        kind=Lora.kind,
        name=name,
        structure={},
        outline="",
        family=family,
        steps=0,
        trigger_words=words,
        note=f"made of {made_of}",
    )


def _said(strength: float | Strength) -> str:
    if isinstance(strength, Strength):
        return f"{number(strength.unet):g} (text {number(strength.text):g})"
    return f"{number(strength):g}"
