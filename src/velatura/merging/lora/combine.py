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
from velatura.merging.bake.weight_deltas import scalar_strength
from velatura.merging.lora.svd import low_rank_delta, nearest_low_rank, reduce_rank
from velatura.overlays.deltas.delta import Delta, TensorShape
from velatura.overlays.deltas.full import FullDelta, NormDelta
from velatura.overlays.deltas.low_rank import BIAS_DIFF, LORA_DOWN, LORA_MID, LORA_UP, BiasedLowRankDelta, LowRankDelta
from velatura.overlays.deltas.product import DORA_SCALE, ProductDelta
from velatura.overlays.lora.kohya_names import UNET_PREFIX, kohya_names
from velatura.overlays.lora.lora import Lora
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength, disable_inference_mode
from velatura.overlays.target import Target

ScaledDeltas = Sequence[tuple[Delta, float]]


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
    lora_strengths = [(_require_lora(overlay), strength) for overlay, strength in overlays]
    if not lora_strengths:
        raise NoEffect("there is nothing to write as one: give LoRAs")
    card = _combined_card(lora_strengths, name)
    base_layers = None if base is None else _BaseLayers.from_base(base, [overlay for overlay, _ in lora_strengths])
    sources = [(overlay.layers, _LoraStrength(overlay, strength, base_layers)) for overlay, strength in lora_strengths]
    deltas: dict[str, Delta] = {}
    with disable_inference_mode():
        for layer_name in dict.fromkeys(layer_name for layers, _ in sources for layer_name in layers):
            scaled_deltas = [
                (layers[layer_name], strength)
                for layers, lora_strength in sources
                if layer_name in layers and (strength := lora_strength.layer_strength(layer_name))
            ]
            weight = base_layers.weight(layer_name) if base_layers else None
            if scaled_deltas and (combined := _combine_layer(layer_name, scaled_deltas, weight, rank, tolerance)):
                deltas[layer_name] = combined
        if not deltas:
            raise NoEffect("nothing is left of the LoRAs at these strengths: give some other than 0")
        lora = Lora(card, deltas)
        lora.bundled_embeddings = _merge_bundled_embeddings([overlay for overlay, _ in lora_strengths])
        return lora


def _merge_bundled_embeddings(loras: Iterable[Lora]) -> dict[str, dict[str, Tensor]]:
    """The embeddings of all of them, which have no strength; a word that two bring stays the first's."""
    embeddings: dict[str, dict[str, Tensor]] = {}
    for lora in loras:
        for word, vectors in lora.bundled_embeddings.items():
            first_vectors = embeddings.setdefault(word, vectors)
            if first_vectors.keys() != vectors.keys() or not all(
                torch.equal(first_vectors[key], tensor) for key, tensor in vectors.items()
            ):
                message = f"{lora.card.name or 'a LoRA'} brings another embedding {word[:40]!r} than one before it"
                warnings.warn(f"{message}, whose is kept", VelaturaWarning, stacklevel=4)
    return embeddings


def _combine_layer(
    layer_name: str, scaled_deltas: ScaledDeltas, weight: Tensor | None, rank: int | None, tolerance: float | None
) -> Delta | None:
    """What several changes of one layer are together."""
    shape = _weight_shape(layer_name, scaled_deltas, weight)
    factors = [_low_rank_factors(delta, strength) for delta, strength in scaled_deltas]
    if None not in factors:
        pairs = cast("list[tuple[Tensor, Tensor]]", factors)
        device = pairs[0][0].device
        up, down = (torch.cat([pair[half].to(device) for pair in pairs], 1 - half) for half in (0, 1))
        if rank is not None or tolerance is not None:
            up, down = reduce_rank(up, down, rank, tolerance)
        return low_rank_delta(up, down, shape)
    change = reduce(
        add,
        (
            delta.weight_delta(_weight_for(layer_name, delta, weight, shape), strength).cpu()
            for delta, strength in scaled_deltas
        ),
    )
    biases = [bias.cpu() for delta, strength in scaled_deltas if (bias := delta.bias_delta(None, strength)) is not None]
    if any(isinstance(delta, NormDelta) for delta, _ in scaled_deltas):
        return NormDelta.from_tensors({"w_norm": change} | ({"b_norm": reduce(add, biases)} if biases else {}))
    low_rank = None if rank is None and tolerance is None else nearest_low_rank(change, rank, tolerance)
    if low_rank and biases:
        return BiasedLowRankDelta.from_tensors(low_rank.state_dict() | {BIAS_DIFF: reduce(add, biases)})
    if low_rank or not (biases or (rank is None and tolerance is None)):
        return low_rank
    return FullDelta.from_tensors({"diff": change} | ({BIAS_DIFF: reduce(add, biases)} if biases else {}))


def _low_rank_factors(delta: Delta, strength: float) -> tuple[Tensor, Tensor] | None:
    """Up at its scale and strength, and down flat; None of what is no plain product of two."""
    if type(delta) is not LowRankDelta or delta.tensor(LORA_MID) is not None:
        return None
    up, down = delta.required_tensor(LORA_UP).flatten(1), delta.required_tensor(LORA_DOWN).flatten(1)
    return up * delta.scale(up.shape[1]) * strength, down


def _weight_shape(layer_name: str, scaled_deltas: ScaledDeltas, weight: Tensor | None) -> TensorShape:
    """The shape of the weight that all change; a matrix may stand for a convolution's, not the other way round."""
    if weight is not None:
        return tuple(weight.shape)
    shape = max((delta.weight_shape for delta, _ in scaled_deltas), key=len)
    if not all(delta.is_compatible(torch.empty(shape, device="meta")) for delta, _ in scaled_deltas):
        raise WrongBase(f"these LoRAs change {layer_name[:80]} of different sizes: combine those of one family")
    return shape


def _weight_for(layer_name: str, delta: Delta, weight: Tensor | None, shape: TensorShape) -> Tensor:
    """The weight that a delta changes: any of its shape will do where it does not look at it."""
    if weight is not None:
        return weight.to(delta.tensors[0].device)
    if isinstance(delta, FullDelta | NormDelta) or (
        isinstance(delta, ProductDelta) and delta.tensor(DORA_SCALE) is None
    ):
        return torch.zeros(shape, device=delta.tensors[0].device)
    raise BadOverlay(f"what {delta.algorithm} does in {layer_name[:80]} hangs on the base's weights: give the base")


@dataclass(frozen=True)
class _BaseLayers:
    """A base, and its names for layers by those in kohya's files."""

    target: Target
    layer_names: Mapping[str, str]

    @classmethod
    def from_base(cls, base: Base, overlays: Iterable[Lora]) -> _BaseLayers:
        """See that the LoRAs are for the base."""
        target = Target.from_model(base)
        for overlay in overlays:
            if not overlay.deltas(target):
                raise WrongBase(f"{overlay.card} fits none of the layers of {base.name}: give a base it was made for")
        return cls(target, kohya_names(target))

    def weight(self, layer_name: str) -> Tensor | None:
        """The weight of a layer, if the base has it."""
        return (
            cast("Tensor", self.target.layer(self.layer_names[layer_name]).weight)
            if layer_name in self.layer_names
            else None
        )


@dataclass(frozen=True)
class _LoraStrength:
    """How strongly a LoRA is to count."""

    overlay: Lora
    strength: float | Strength
    base_layers: _BaseLayers | None

    def layer_strength(self, layer_name: str) -> float:
        """How strongly it counts in a layer."""
        strength = self.strength
        if isinstance(strength, Strength):
            strength = strength.unet if layer_name.startswith(UNET_PREFIX) else strength.text
        return scalar_strength(strength) * self._block_factor(layer_name)

    def _block_factor(self, layer_name: str) -> float:
        if not self.overlay.block_weights:
            return 1.0
        if self.base_layers is None:
            raise BadOverlay(f"the blocks of {self.overlay.card} have strengths of their own: give the base")
        return (
            self.overlay.strength_factor(self.base_layers.target, self.base_layers.layer_names[layer_name])
            if layer_name in self.base_layers.layer_names
            else 1.0
        )


def _require_lora(overlay: Overlay) -> Lora:
    if not isinstance(overlay, Lora):
        raise BadOverlay(f"{overlay.card} is no LoRA: only changes of weights are written as one; bake others")
    return overlay


def _combined_card(lora_strengths: Sequence[tuple[Lora, float | Strength]], name: str) -> Card:
    first = lora_strengths[0][0].card
    families = {overlay.card.family for overlay, _ in lora_strengths if overlay.card.family}
    if len(families) > 1:
        raise WrongBase(f"these LoRAs are for {' and for '.join(sorted(families))}: combine those of one family")
    trigger_words = tuple(
        dict.fromkeys(trigger_word for overlay, _ in lora_strengths for trigger_word in overlay.card.trigger_words)
    )[:100]
    parents = ", ".join(
        f"{overlay.card.name or overlay.kind} at {_format_strength(strength)}" for overlay, strength in lora_strengths
    )
    family = next(iter(families), "")
    return first.replace(
        kind=Lora.kind,
        name=name,
        structure={},
        outline="",
        family=family,
        steps=0,
        trigger_words=trigger_words,
        note=f"made of {parents}",
    )


def _format_strength(strength: float | Strength) -> str:
    if isinstance(strength, Strength):
        return f"{scalar_strength(strength.unet):g} (text {scalar_strength(strength.text):g})"
    return f"{scalar_strength(strength):g}"
