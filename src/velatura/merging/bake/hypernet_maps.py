"""What several hypernetworks, one after the other, make of the contexts of one width."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadOverlay, NoEffect, UnsupportedBase
from velatura.merging.bake.weight_deltas import WeightDeltas, scalar_strength
from velatura.overlays.affine import AffineMap, float64_device, is_foldable, to_float64
from velatura.overlays.attention_layers import attention_layers, context_width
from velatura.overlays.composition import Blend, Composition, Leaf, Node
from velatura.overlays.hooks.seams import check_kv_projections
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay
from velatura.overlays.strength import Strength, disable_inference_mode
from velatura.overlays.transform import HypernetworkModule


class ContextMap(Protocol):
    """What is read in place of a context."""

    @property
    def is_affine(self) -> bool:
        """Whether it is affine, so that nothing is lost when it goes into weights."""
        ...

    def apply(self, context: Tensor) -> Tensor:
        """What is read in place of a context (pictures, tokens, width)."""
        ...

    def affine(self) -> AffineMap:
        """The same as a map, in float64; only where it is exact."""
        ...


@dataclass(frozen=True)
class _NetMap:
    """A network of a hypernetwork, c + strength * f(c)."""

    transform: HypernetworkModule
    strength: Tensor

    @property
    def is_affine(self) -> bool:
        return AffineMap.is_affine_network(self.transform.linear)

    def apply(self, context: Tensor) -> Tensor:
        return self.transform(context, self.strength)

    def affine(self) -> AffineMap:
        linear_map = AffineMap.from_network(self.transform.linear)
        return AffineMap(to_float64(linear_map.matrix), to_float64(linear_map.shift)).residual(self.strength.item())


@dataclass(frozen=True)
class SequentialMap:
    """Links that act in order, each on what the one before made; unit: the map that changes nothing."""

    unit: AffineMap
    maps: tuple[ContextMap, ...]

    @classmethod
    def identity(cls, width: int, device: torch.device) -> Self:
        """What leaves contexts of a width as they are."""
        matrix = torch.eye(width, dtype=torch.float64, device=float64_device(device))
        return cls(AffineMap(matrix, torch.zeros_like(matrix[0])), ())

    def with_maps(self, *maps: ContextMap) -> SequentialMap:
        """A row of other links."""
        return SequentialMap(self.unit, maps)

    @property
    def is_affine(self) -> bool:
        """Whether all of them are affine."""
        return all(context_map.is_affine for context_map in self.maps)

    def apply(self, context: Tensor) -> Tensor:
        """What is read in place of a context after all of them."""
        return reduce(lambda before, context_map: context_map.apply(before), self.maps, context)

    def affine(self) -> AffineMap:
        """The same as a map, in float64; only where all of them are exact."""
        return reduce(lambda first, then: then.affine().compose(first), self.maps, self.unit)


@dataclass(frozen=True)
class _MeanMap:
    """Links that act on the same context, and the share that each has in what is read."""

    maps: tuple[ContextMap, ...]
    weights: tuple[float, ...]

    @property
    def is_affine(self) -> bool:
        return all(context_map.is_affine for context_map in self.maps)

    def apply(self, context: Tensor) -> Tensor:
        return _weighted_sum([context_map.apply(context) for context_map in self.maps], self.weights)

    def affine(self) -> AffineMap:
        affines = [context_map.affine() for context_map in self.maps]
        return AffineMap(
            *(
                _weighted_sum(tensors, self.weights)
                for tensors in ([affine.matrix for affine in affines], [affine.shift for affine in affines])
            )
        )


def build_context_map(
    overlay: Hypernetwork | Composition, strength: float, width: int, kv_index: int, identity: SequentialMap
) -> ContextMap:
    """What an overlay at a strength makes of the contexts of a width for K (part 0) or V (part 1); perhaps nothing."""
    if isinstance(overlay, Hypernetwork):
        return _build_net_map(overlay, strength, width, kv_index) or identity
    tree_map = _build_node_map(overlay.tree, overlay, width, kv_index, identity)
    return _MeanMap((tree_map, identity), (strength, 1 - strength))  # c + strength * (tree(c) - c)


def _build_node_map(
    node: Node, composition: Composition, width: int, kv_index: int, identity: SequentialMap
) -> ContextMap:
    if isinstance(node, Leaf):
        return _build_net_map(composition.members[node.name], node.strength, width, kv_index) or identity
    maps = [_build_node_map(child, composition, width, kv_index, identity) for child in node.parts]
    if isinstance(node, Blend):
        return _MeanMap(tuple(maps), tuple(weight / sum(node.weights) for weight in node.weights))
    return identity.with_maps(*maps)


def _build_net_map(overlay: Hypernetwork, strength: float, width: int, kv_index: int) -> _NetMap | None:
    if width not in overlay.structure.widths:
        return None
    transform = cast("HypernetworkModule", overlay.get_submodule(f"{width}_{kv_index}"))
    return _NetMap(transform, torch.tensor(strength, device=next(transform.parameters()).device))


def _weighted_sum(tensors: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    return reduce(torch.add, (weight * tensor for tensor, weight in zip(tensors, weights, strict=True)))


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
