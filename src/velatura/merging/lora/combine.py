"""Combine several LoRAs into one, or reduce one to another rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from velatura.arguments import check_arguments
from velatura.base.base import Base
from velatura.base.pipeline import AnyBase, freeze_models, to_base
from velatura.card import Card
from velatura.errors import BadOverlay, NoEffect, WrongBase, quantity, warn
from velatura.merging.bake.weight_deltas import text_strength, unet_strength
from velatura.merging.lora.combine_layer import CombinedLayer, ScaledDeltas, combine_layer
from velatura.merging.lora.svd import check_rank
from velatura.merging.measures import format_ranks, relative_error
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.compatibility import warn_of_timesteps
from velatura.overlays.lora.kohya_names import TEXT_PREFIX, UNET_PREFIX, kohya_names
from velatura.overlays.lora.lora import BundledEmbeddings, Lora
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength, disable_inference_mode
from velatura.overlays.target import Target

MAX_TRIGGER_WORDS = 100
ONLY_TOWER_PREFIX, FIRST_TOWER_PREFIX = f"{TEXT_PREFIX}_", f"{TEXT_PREFIX}1_"
NUMBERED_TOWER_PREFIXES = (FIRST_TOWER_PREFIX, f"{TEXT_PREFIX}2_")


class CombineReport(BaseModel):
    """Contents and error of a combined LoRA.

    Attributes:
        loras: The names of the LoRAs with their strengths, "ink at 0.8".
        layers: How many layers the result has.
        ranks: The least and the largest rank of those layers, (0, 0) if none has ranks.
        whole: How many of those layers hold a whole change of their weight, without ranks.
        exact: True if nothing was reduced to a rank or a tolerance.
        missed: The size of the error relative to the size of the change, norms and biases apart; 0 if exact.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    loras: tuple[str, ...]
    layers: int
    ranks: tuple[int, int]
    whole: int
    exact: bool
    missed: float

    def __str__(self) -> str:
        whole = f", {self.whole} of them without ranks" if self.whole else ""
        error = "exact" if self.exact else f"{self.missed:.1%} of the change missed"
        return (
            f"{', '.join(self.loras)} as one LoRA\n"
            f"  {quantity(self.layers, 'layer')} of {format_ranks(self.ranks)}{whole}, {error}"
        )


@torch.no_grad()
@freeze_models
@check_arguments()
def combine(
    overlays: Iterable[tuple[Overlay, float | Strength]],
    *,
    rank: int | None = None,
    tolerance: float | None = None,
    base: AnyBase | None = None,
    name: str = "",
) -> tuple[Lora, CombineReport]:
    """Combine LoRAs into one that does at strength 1 what all of them do together.

    The result is exact if neither rank nor tolerance is given: ranks are put side by side, and changes without ranks
    are stored whole. Embeddings that are bundled with the LoRAs are copied.

    Args:
        overlays: LoRAs or differences with their strengths, for both parts of a base or for each.
        rank: Reduce each layer to this rank; with a tolerance the largest rank allowed.
        tolerance: Reduce each layer to the least rank that misses no more of its change than this share, such as 0.1.
        base: The base that they are for. Changes that depend on the base's weights (DoRA, OFT) and block weights need
            it.
        name: The name of the result.

    Returns:
        The combined LoRA, and a report of its ranks and of the share of the change that it misses.

    Raises:
        BadOverlay: An overlay is not a LoRA, needs the base, or the rank or the tolerance is out of range.
        WrongBase: The LoRAs are for different bases, or not for `base`.
        NoEffect: No LoRA is given, or nothing is left of them at these strengths.
    """
    check_rank(rank, tolerance)
    loras = [(_check_lora(overlay), strength) for overlay, strength in overlays]
    if not loras:
        raise NoEffect("there is nothing to combine: give LoRAs")
    for lora, _ in loras:
        warn_of_timesteps(lora.card, lora.layers.values(), "combined LoRAs")
    card = _combined_card(loras, name)
    shared_base = None if base is None else to_base(base)
    base_layers = None if shared_base is None else _BaseLayers.from_base(shared_base, [lora for lora, _ in loras])
    has_two_towers = _has_two_towers([lora for lora, _ in loras], shared_base)
    scaled_loras = [_ScaledLora(lora, strength, base_layers, has_two_towers=has_two_towers) for lora, strength in loras]
    layers: dict[str, CombinedLayer] = {}
    with disable_inference_mode():
        for layer_name in dict.fromkeys(layer_name for scaled in scaled_loras for layer_name in scaled.layers):
            scaled_deltas = _active_deltas(scaled_loras, layer_name)
            if not scaled_deltas:
                continue
            weight = base_layers.weight(layer_name) if base_layers else None
            layer = combine_layer(layer_name, scaled_deltas, weight, rank, tolerance)
            if layer is not None:
                layers[layer_name] = layer
        if not layers:
            raise NoEffect("the LoRAs cancel out or their strengths are 0: give other strengths")
        deltas = {layer_name: layer.delta for layer_name, layer in layers.items()}
        lora = Lora(card, deltas, bundled_embeddings=_merge_bundled_embeddings([lora for lora, _ in loras]))
    exact = rank is None and tolerance is None
    return lora, _report(loras, list(layers.values()), exact=exact)


def _active_deltas(scaled_loras: Sequence[_ScaledLora], layer_name: str) -> ScaledDeltas:
    """Return the deltas of a layer whose strength is not 0, with their strengths."""
    scaled_deltas: list[tuple[Delta, float]] = []
    for scaled_lora in scaled_loras:
        delta = scaled_lora.layers.get(layer_name)
        if delta is None:
            continue
        strength = scaled_lora.layer_strength(layer_name)
        if strength:
            scaled_deltas.append((delta, strength))
    return scaled_deltas


@dataclass(frozen=True)
class _BaseLayers:
    """Layers of a base, and diffusers' names by kohya's names."""

    target: Target
    diffusers_names: Mapping[str, str]

    @classmethod
    def from_base(cls, base: Base, loras: Iterable[Lora]) -> _BaseLayers:
        target = Target.from_model(base)
        for lora in loras:
            if not lora.deltas(target):
                raise WrongBase(f"{lora.card} fits none of the layers of {base.name}: give the base it was made for")
        return cls(target, kohya_names(target))

    def weight(self, layer_name: str) -> Tensor | None:
        """Return the weight of a layer, None if the base does not have it."""
        diffusers_name = self.diffusers_names.get(layer_name)
        return None if diffusers_name is None else cast("Tensor", self.target.layer(diffusers_name).weight)


class _ScaledLora:
    """A LoRA and its strength in each layer."""

    def __init__(
        self, lora: Lora, strength: float | Strength, base_layers: _BaseLayers | None, *, has_two_towers: bool
    ) -> None:
        """Take its layers, with the number 1 for the first of two text encoders, which some files leave out."""
        self.layers = {
            f"{FIRST_TOWER_PREFIX}{name.removeprefix(ONLY_TOWER_PREFIX)}"
            if has_two_towers and name.startswith(ONLY_TOWER_PREFIX)
            else name: delta
            for name, delta in lora.layers.items()
        }
        self._lora = lora
        self._strength = strength
        self._base_layers = base_layers

    def layer_strength(self, layer_name: str) -> float:
        is_unet = layer_name.startswith(UNET_PREFIX)
        strength = unet_strength(self._strength) if is_unet else text_strength(self._strength)
        return strength * self._block_factor(layer_name)

    def _block_factor(self, layer_name: str) -> float:
        if not self._lora.block_weights:
            return 1.0
        if self._base_layers is None:
            raise BadOverlay(f"{self._lora.card} has block weights, which need the base: give the base")
        diffusers_name = self._base_layers.diffusers_names.get(layer_name)
        if diffusers_name is None:
            return 1.0
        return self._lora.strength_factor(self._base_layers.target, diffusers_name)


def _has_two_towers(loras: Iterable[Lora], base: Base | None) -> bool:
    """Return True if the LoRAs are for a base with two text encoders, as far as the base or any of them tells."""
    if base is not None:
        return len(Target.from_model(base).text_encoders) > 1
    names = (name for lora in loras for name in lora.layers)
    return any(name.startswith(NUMBERED_TOWER_PREFIXES) for name in names)


def _check_lora(overlay: Overlay) -> Lora:
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"{overlay.card} is not a LoRA: combine takes LoRAs and differences; bake the others")
    return overlay


def _merge_bundled_embeddings(loras: Iterable[Lora]) -> BundledEmbeddings:
    """Return the embeddings of all LoRAs, the first one of each name, and warn if two differ."""
    embeddings: BundledEmbeddings = {}
    for lora in loras:
        for name, vectors in lora.bundled_embeddings.items():
            first = embeddings.setdefault(name, vectors)
            if first.keys() != vectors.keys() or not all(torch.equal(first[key], vectors[key]) for key in vectors):
                lora_name = lora.card.name or "a LoRA"
                warn(f"{lora_name} brings another embedding {name[:40]!r} than an earlier LoRA: the first one is kept")
    return embeddings


def _combined_card(loras: Sequence[tuple[Lora, float | Strength]], name: str) -> Card:
    families = {lora.card.family for lora, _ in loras if lora.card.family}
    if len(families) > 1:
        raise WrongBase(f"these LoRAs are for {' and for '.join(sorted(families))}: combine those of one family")
    trigger_words = dict.fromkeys(word for lora, _ in loras for word in lora.card.trigger_words)
    return loras[0][0].card.replace(
        kind=Lora.kind,
        name=name,
        structure={},
        outline="",
        family=next(iter(families), ""),
        steps=0,
        trigger_words=tuple(trigger_words)[:MAX_TRIGGER_WORDS],
        note=f"made of {', '.join(_names_with_strengths(loras))}",
    )


def _names_with_strengths(loras: Sequence[tuple[Lora, float | Strength]]) -> list[str]:
    return [f"{lora.card.name or lora.kind} at {_format_strength(strength)}" for lora, strength in loras]


def _format_strength(strength: float | Strength) -> str:
    if isinstance(strength, Strength):
        return f"{unet_strength(strength):g} (text {text_strength(strength):g})"
    return f"{unet_strength(strength):g}"


def _report(
    loras: Sequence[tuple[Lora, float | Strength]], layers: Sequence[CombinedLayer], *, exact: bool
) -> CombineReport:
    ranks = [layer.delta.rank for layer in layers if layer.delta.rank is not None]
    squared_error = sum(layer.squared_error for layer in layers)
    return CombineReport(
        loras=tuple(_names_with_strengths(loras)),
        layers=len(layers),
        ranks=(min(ranks), max(ranks)) if ranks else (0, 0),
        whole=len(layers) - len(ranks),
        exact=exact,
        missed=relative_error(squared_error, sum(layer.squared_change for layer in layers)),
    )
