"""Add the weight changes of LoRAs, LyCORIS and differences to the weights of a copy of a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadOverlay, UnsupportedBase, WrongBase
from velatura.merging.bake.report import BakedLayers
from velatura.overlays.deltas.delta import Delta
from velatura.overlays.lora.compatibility import warn_of_timesteps
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength, strength_tensor
from velatura.overlays.target import Target

# Why overlays of other kinds cannot be baked, and what to do instead
NOT_BAKEABLE = {
    "embedding": "is a word, not a change of weights: keep its file beside the base, and use it in prompts",
    "aesthetic": "tunes the text encoders anew for each prompt: keep its file beside the base",
}


@dataclass(frozen=True, eq=False)
class WeightDeltas:
    """Weight changes of one overlay in a base.

    Attributes:
        overlay: The overlay.
        strength: Its strength, or one for the text encoders and one for the UNet.
        deltas: Its changes by the names of the base's layers.
        factors: Factors of the strength by the same names, from block weights.
    """

    overlay: Overlay
    strength: float | Strength
    deltas: Mapping[str, Delta]
    factors: Mapping[str, float]

    @classmethod
    def from_overlay(cls, base: Base, overlay: Overlay, strength: float | Strength) -> WeightDeltas:
        """Find the changes that an overlay makes in a base.

        Raises:
            BadOverlay: The overlay is not a change of weights.
            WrongBase: The overlay does not fit the base.
        """
        label = str(overlay.card)
        if type(overlay).deltas is Overlay.deltas:
            reason = NOT_BAKEABLE.get(overlay.kind, "is not a change of weights: keep its file beside the base")
            raise BadOverlay(f"{label} cannot be baked: it {reason}")
        target = Target.from_model(base)
        deltas = overlay.deltas(target)
        if not deltas:
            raise WrongBase(f"{label} fits none of the layers of {base.name}: open a base it was made for")
        for name, delta in deltas.items():
            weight = cast("Tensor", target.layer(name).weight)
            if not delta.is_compatible(weight):
                raise WrongBase(
                    f"{label} has a change of {name} that does not fit its weight of shape {tuple(weight.shape)}: "
                    "open a base it was made for"
                )
        warn_of_timesteps(overlay.card, deltas.values(), "baked weights")
        return cls(overlay, strength, deltas, {name: overlay.strength_factor(target, name) for name in deltas})

    @property
    def has_effect(self) -> bool:
        """True if at least one layer has a strength other than 0."""
        return any(self.layer_strength(name) for name in self.deltas)

    def layer_strength(self, name: str) -> float:
        """Return the strength in a layer."""
        strength = unet_strength(self.strength) if name.startswith("unet.") else text_strength(self.strength)
        return strength * self.factors[name]

    def report_row(self) -> BakedLayers:
        """Return the row of a report for what is added."""
        return BakedLayers(
            overlay=self.overlay.card.name or self.overlay.kind,
            algorithms=tuple(sorted({delta.algorithm for delta in self.deltas.values()})),
            layers=len(self.deltas),
            unet=unet_strength(self.strength),
            text=text_strength(self.strength),
        )


def unet_strength(strength: float | Strength) -> float:
    """Return the strength in the UNet as one number; raises BadOverlay for one strength for each row of a batch."""
    return _scalar_strength(strength.unet if isinstance(strength, Strength) else strength)


def text_strength(strength: float | Strength) -> float:
    """Return the strength in the text encoders as one number; raises BadOverlay as `unet_strength` does."""
    return _scalar_strength(strength.text if isinstance(strength, Strength) else strength)


def _scalar_strength(strength: float | Tensor) -> float:
    if strength_tensor(strength).ndim:
        raise BadOverlay("several strengths cannot go into one set of weights: give one number")
    return float(strength)


@torch.no_grad()
def add_deltas(base: Base, base_copy: Base, weight_deltas: Sequence[WeightDeltas]) -> None:
    """Add the changes of overlays to the weights of a copy of a base.

    As with attached overlays, each change is computed from the base's own weights. All changes are summed in float32
    and rounded once.

    Args:
        base: The base that gives the weights.
        base_copy: Its copy, which is changed in place.
        weight_deltas: The changes.

    Raises:
        UnsupportedBase: An overlay changes a bias that the base lacks.
    """
    base_target, copy_target = Target.from_model(base), Target.from_model(base_copy)
    for name in dict.fromkeys(name for overlay_deltas in weight_deltas for name in overlay_deltas.deltas):
        scaled_deltas = _active_deltas(weight_deltas, name)
        if scaled_deltas:
            _add_to_layer(base_target.layer(name), copy_target.layer(name), name, scaled_deltas)


def _active_deltas(weight_deltas: Sequence[WeightDeltas], name: str) -> list[tuple[Delta, float]]:
    """Return the deltas of a layer whose strength is not 0, with their strengths."""
    scaled_deltas: list[tuple[Delta, float]] = []
    for overlay_deltas in weight_deltas:
        if name in overlay_deltas.deltas:
            strength = overlay_deltas.layer_strength(name)
            if strength:
                scaled_deltas.append((overlay_deltas.deltas[name], strength))
    return scaled_deltas


def _add_to_layer(
    base_layer: nn.Module, copy_layer: nn.Module, name: str, scaled_deltas: Sequence[tuple[Delta, float]]
) -> None:
    device = scaled_deltas[0][0].tensors[0].device
    weight = cast("Tensor", base_layer.weight).to(device)
    _add(cast("Tensor", copy_layer.weight), [delta.weight_delta(weight, strength) for delta, strength in scaled_deltas])
    bias = cast("Tensor | None", getattr(base_layer, "bias", None))
    if bias is not None:
        bias = bias.to(device)
    bias_deltas = [delta.bias_delta(bias, strength) for delta, strength in scaled_deltas]
    changes = [bias_delta for bias_delta in bias_deltas if bias_delta is not None]
    if changes:
        if not isinstance(copy_layer.bias, Tensor):
            raise UnsupportedBase(f"{name} has no bias, which an overlay changes: keep that overlay beside the base")
        _add(copy_layer.bias, changes)


def _add(parameter: Tensor, changes: Sequence[Tensor]) -> None:
    """Add changes in float32, and round once to the parameter's precision."""
    total = parameter.float()
    for change in changes:
        total = total + change.to(total.device).view(total.shape)
    parameter.copy_(total)
