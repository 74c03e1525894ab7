"""Changes of weights into a copy of a base: of LoRAs, of all that grew out of them, and of differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadOverlay, UnsupportedBase, WrongBase
from velatura.merging.bake.report import BakedLayers
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength, strength_tensor
from velatura.overlays.target import Target

# why other kinds stay beside a base, and what is to be done
NOT_BAKEABLE = {
    "embedding": "is a word, not a change of weights: keep its file beside the base, and call it in prompts",
    "aesthetic": "turns the text towers anew for each prompt: keep its file beside the base",
}


@dataclass(frozen=True, eq=False)
class WeightDeltas:
    """An overlay that changes weights, by the names that a base has for its layers, and how strongly."""

    overlay: Overlay
    strength: float | Strength
    deltas: Mapping[str, Delta]
    factors: Mapping[str, float]

    @classmethod
    def from_overlay(cls, base: Base, overlay: Overlay, strength: float | Strength) -> WeightDeltas:
        """See what an overlay changes in a base, and refuse what cannot go into its weights."""
        label = str(overlay.card)
        if type(overlay).deltas is Overlay.deltas:
            reason = NOT_BAKEABLE.get(overlay.kind, "is no change of weights: keep its file beside the base")
            raise BadOverlay(f"{label} cannot be baked: it {reason}")
        target = Target.from_model(base)
        deltas = overlay.deltas(target)
        if not deltas:
            raise WrongBase(f"{label} fits none of the layers of {base.name}: open a base it was made for")
        for name, delta in deltas.items():
            weight = cast("Tensor", target.layer(name).weight)
            if not delta.is_compatible(weight):
                raise WrongBase(
                    f"{label} has a change of {name} that fits no weight of {tuple(weight.shape)}: "
                    "open a base it was made for"
                )
        return cls(overlay, strength, deltas, {name: overlay.strength_factor(target, name) for name in deltas})

    @property
    def unet_strength(self) -> float:
        """How strongly it acts in the UNet."""
        return scalar_strength(self.strength.unet if isinstance(self.strength, Strength) else self.strength)

    @property
    def text_strength(self) -> float:
        """How strongly it acts in the text towers."""
        return scalar_strength(self.strength.text if isinstance(self.strength, Strength) else self.strength)

    @property
    def has_effect(self) -> bool:
        """Whether it changes anything at all."""
        return any(self.layer_strength(name) for name in self.deltas)

    def layer_strength(self, name: str) -> float:
        """How strongly it acts in a layer."""
        return (self.unet_strength if name.startswith("unet.") else self.text_strength) * self.factors[name]

    def report_row(self) -> BakedLayers:
        """What of it goes into weights."""
        return BakedLayers(
            overlay=self.overlay.card.name or self.overlay.kind,
            algorithms=tuple(sorted({delta.algorithm for delta in self.deltas.values()})),
            layers=len(self.deltas),
            unet=self.unet_strength,
            text=self.text_strength,
        )


def scalar_strength(strength: float | Tensor) -> float:
    """A strength as one number; BadOverlay where it is several."""
    if strength_tensor(strength).ndim:
        raise BadOverlay("several strengths do not go into one set of weights: give one number")
    return float(strength)


@torch.no_grad()
def add_deltas(base: Base, base_copy: Base, weight_deltas: Sequence[WeightDeltas]) -> None:
    """Add what overlays change in a base to the weights of a copy of it.

    Each reads the base's own weights, as it does laid over it; all are summed in float32, and rounded once.
    """
    base_target, copy_target = Target.from_model(base), Target.from_model(base_copy)
    for name in dict.fromkeys(
        name
        for overlay_deltas in weight_deltas
        for name in overlay_deltas.deltas
        if overlay_deltas.layer_strength(name)
    ):
        active = [
            (overlay_deltas.deltas[name], strength)
            for overlay_deltas in weight_deltas
            if name in overlay_deltas.deltas and (strength := overlay_deltas.layer_strength(name))
        ]
        base_layer, copy_layer = base_target.layer(name), copy_target.layer(name)
        device = active[0][0].tensors[0].device
        weight, bias = (cast("Tensor | None", getattr(base_layer, attribute, None)) for attribute in ("weight", "bias"))
        weight, bias = cast("Tensor", weight).to(device), None if bias is None else bias.to(device)
        _add(cast("Tensor", copy_layer.weight), (delta.weight_delta(weight, strength) for delta, strength in active))
        changes = [
            bias_change for delta, strength in active if (bias_change := delta.bias_delta(bias, strength)) is not None
        ]
        if changes:
            _add(_bias(copy_layer, name), iter(changes))


def _add(parameter: Tensor, changes: Iterator[Tensor]) -> None:
    total = parameter.float()
    for change in changes:
        total = total + change.to(total.device).view(total.shape)
    parameter.copy_(total)


def _bias(layer: nn.Module, name: str) -> Tensor:
    if isinstance(layer.bias, Tensor):
        return layer.bias
    raise UnsupportedBase(f"{name} has no bias, which an overlay changes: keep that beside the base")
