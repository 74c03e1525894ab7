"""Check and prepare what is baked: sort overlays by how they go into weights, and refuse what cannot."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from velatura.base.base import Base
from velatura.errors import BadOverlay, NoEffect, UnsupportedBase
from velatura.merging.bake.hypernet_maps import HypernetStrength
from velatura.merging.bake.weight_deltas import WeightDeltas, unet_strength
from velatura.overlays.affine import is_foldable
from velatura.overlays.attention_layers import attention_layers
from velatura.overlays.composition import Composition
from velatura.overlays.hooks.seams import check_kv_projections
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength, disable_inference_mode


@dataclass(frozen=True)
class BakeInputs:
    """Overlays of a bake that have an effect, in eval mode on the base's device.

    Attributes:
        overlays: All of them in their order.
        hypernetworks: Those that are folded into to_k, to_v and to_out.
        weight_deltas: Those that are added to weights.
    """

    overlays: list[tuple[Overlay, float | Strength]]
    hypernetworks: list[HypernetStrength]
    weight_deltas: list[WeightDeltas]


def prepare_overlays(base: Base, overlays: Sequence[tuple[Overlay, float | Strength]]) -> BakeInputs:
    """Sort overlays by how they go into the weights of a base, and leave out those without effect.

    Raises:
        BadOverlay: An overlay is not a change of weights.
        WrongBase: An overlay does not fit the base.
        NoEffect: No overlay has an effect.
    """
    inputs = BakeInputs([], [], [])
    for overlay, strength in overlays:
        if isinstance(overlay, Hypernetwork | Composition):
            hypernet_strength = unet_strength(strength)
            if hypernet_strength:
                hypernetwork = deepcopy(overlay).eval().to(base.device)
                inputs.hypernetworks.append((hypernetwork, hypernet_strength))
                inputs.overlays.append((hypernetwork, hypernet_strength))
        else:
            weight_deltas = _prepare_deltas(base, overlay, strength)
            if weight_deltas.has_effect:
                inputs.weight_deltas.append(weight_deltas)
                inputs.overlays.append((weight_deltas.overlay, strength))
    if not inputs.overlays:
        raise NoEffect(f"nothing would change in {base.name}: give overlays with strengths other than 0")
    return inputs


def prepare_hypernetwork(base: Base, overlay: Overlay, strength: float) -> list[HypernetStrength]:
    """Prepare one hypernetwork or composition, and refuse other overlays; raises BadOverlay."""
    if not isinstance(overlay, Hypernetwork | Composition):
        raise BadOverlay(
            f"{overlay.card} is not a hypernetwork: only those are turned into LoRAs this way; "
            "velatura extract makes LoRAs from models"
        )
    return prepare_overlays(base, [(overlay, strength)]).hypernetworks


def check_no_overlays_attached(base: Base) -> None:
    """Refuse a base whose K and V are more than products with their weights, as with overlays attached.

    Raises:
        UnsupportedBase: Overlays are attached, or the attention layers are of another structure.
    """
    for name, layer in attention_layers(base.unet):
        check_kv_projections(name, layer)
        if not all(is_foldable(layer.get_submodule(projection)) for projection in ("to_k", "to_v")):
            raise UnsupportedBase(f"an overlay is attached to {name} of {base.name}: detach all overlays first")


def _prepare_deltas(base: Base, overlay: Overlay, strength: float | Strength) -> WeightDeltas:
    if overlay.training:
        overlay = deepcopy(overlay).eval()
    with disable_inference_mode():
        overlay.to(base.device)
    return WeightDeltas.from_overlay(base, overlay, strength)
