"""What several hypernetworks, one after the other, make of the contexts of one width."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadOverlay, NoEffect, UnsupportedBase
from velatura.merging.links import SequentialMap, build_context_map
from velatura.merging.summed import WeightDeltas, scalar_strength
from velatura.overlays.affine import AffineMap, is_foldable
from velatura.overlays.composition import Composition
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.layers import attention_layers, context_width
from velatura.overlays.overlay import Overlay
from velatura.overlays.seams import check_kv_projections
from velatura.overlays.strength import Strength, disable_inference_mode

K, V = 0, 1
KV_INDICES = (K, V)

HypernetStrength = tuple[Hypernetwork | Composition, float]


@dataclass(frozen=True)
class HypernetMap:
    """The overlays that act on one width in their order; parts: what they make of it for K and for V."""

    kv_maps: tuple[SequentialMap, SequentialMap]

    def change(self, context: Tensor, kv_index: int) -> Tensor:
        """What all of them together add to what K (part 0) or V (part 1) reads."""
        return self.kv_maps[kv_index].apply(context) - context

    def affine(self, kv_index: int) -> AffineMap:
        """What is added to a context c as an affine map A c + b, in float64, where is_exact.

        A network of Linear layers alone is affine: c + s (A c + b). So is what several of them make one after another,
        and the mean of what they make.
        """
        full_map = self.kv_maps[kv_index].affine()
        return AffineMap(full_map.matrix - self.kv_maps[kv_index].unit.matrix, full_map.shift)

    @property
    def is_affine(self) -> bool:
        """Whether all that they do is affine, so that nothing is lost when it goes into weights."""
        return all(kv_map.is_affine for kv_map in self.kv_maps)


@dataclass(frozen=True)
class BakeInputs:
    """Overlays that are to go into the weights of a base: in their order, and by what is done with them."""

    overlays: list[tuple[Overlay, float | Strength]]
    hypernetworks: list[HypernetStrength]
    weight_deltas: list[WeightDeltas]


def prepare_overlays(base: Base, overlays: Sequence[tuple[Overlay, float | Strength]]) -> BakeInputs:
    """Those that act, in eval mode where the base lives; what cannot go into weights is refused."""
    inputs = BakeInputs([], [], [])
    for overlay, strength in overlays:
        if isinstance(overlay, Hypernetwork | Composition):
            unet_strength = scalar_strength(strength.unet if isinstance(strength, Strength) else strength)
            if unet_strength:
                inputs.hypernetworks.append((deepcopy(overlay).eval().to(base.device), unet_strength))
                inputs.overlays.append(inputs.hypernetworks[-1])
            continue
        overlay_copy = deepcopy(overlay).eval() if overlay.training else overlay
        with disable_inference_mode():
            overlay_copy.to(base.device)
        deltas = WeightDeltas.from_overlay(base, overlay_copy, strength)
        if deltas.has_effect:
            inputs.weight_deltas.append(deltas)
            inputs.overlays.append((overlay_copy, strength))
    if not inputs.overlays:
        raise NoEffect(f"nothing is laid on {base.name}: give overlays with strengths other than 0")
    return inputs


def prepare_hypernetwork(base: Base, overlay: Overlay, strength: float) -> list[HypernetStrength]:
    """A copy of a hypernetwork or of several composed, that acts; any other overlay is refused."""
    if not isinstance(overlay, Hypernetwork | Composition):
        raise BadOverlay(
            f"{overlay.card} is no hypernetwork, and only those are fitted: velatura extract makes LoRAs of models"
        )
    return prepare_overlays(base, [(overlay, strength)]).hypernetworks


def hypernet_maps(base: Base, hypernetworks: Sequence[HypernetStrength]) -> dict[int, HypernetMap]:
    """The chain of each width that the overlays change and the base has."""
    maps_by_width: dict[int, HypernetMap] = {}
    for width in dict.fromkeys(context_width(layer) for _, layer in attention_layers(base.unet)):
        active = [pair for pair in hypernetworks if width in _widths(pair[0])]
        if active:
            identity = SequentialMap.identity(width, base.device)
            k, v = (
                identity.with_maps(*(build_context_map(*pair, width, kv_index, identity) for pair in active))
                for kv_index in KV_INDICES
            )
            maps_by_width[width] = HypernetMap((k, v))
    return maps_by_width


def check_no_overlays_attached(base: Base) -> None:
    """Refuse a base whose K and V are not the plain products of their weights: with overlays on it, say."""
    for name, layer in attention_layers(base.unet):
        check_kv_projections(name, layer)
        if not all(is_foldable(layer.get_submodule(projection)) for projection in ("to_k", "to_v")):
            raise UnsupportedBase(f"{base.name} has something laid over {name}: detach all overlays from it first")


def context_source(name: str, layer: nn.Module) -> str:
    """Where a layer's contexts come from: cross-attention of one width all reads the same, self-attention its own."""
    is_cross = bool(getattr(layer, "is_cross_attention", True))
    return f"text {context_width(layer)}" if is_cross else name


def _widths(overlay: Hypernetwork | Composition) -> Sequence[int]:
    return overlay.structure.widths if isinstance(overlay, Hypernetwork) else overlay.widths
