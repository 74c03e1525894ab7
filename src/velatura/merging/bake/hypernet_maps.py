"""The effect of several hypernetworks, one after another, on the contexts of one width, as maps of a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.overlays.affine import AffineMap, float64_device, to_float64
from velatura.overlays.attention_layers import attention_layers, context_width
from velatura.overlays.composition import Blend, Composition, Leaf, Node
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.transform import HypernetworkModule

K, V = 0, 1  # as in the keys of hypernetwork files: 768_0 and 768_1 in the state dict
KV_INDICES = (K, V)

HypernetStrength = tuple[Hypernetwork | Composition, float]


class ContextMap(Protocol):
    """A map from a context to the context that K or V reads instead."""

    @property
    def is_affine(self) -> bool:
        """True if the map is affine, so that it can be folded into weights exactly."""
        ...

    def apply(self, context: Tensor) -> Tensor:
        """Return the context (pictures, tokens, width) that is read instead."""
        ...

    def affine(self) -> AffineMap:
        """Return the same as an affine map in float64; only if `is_affine`."""
        ...


@dataclass(frozen=True)
class _NetMap:
    """One network of a hypernetwork: c + strength * f(c)."""

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
    """Maps that act one after another.

    Attributes:
        unit: The identity of the same width, in float64.
        maps: The maps, the first to act first.
    """

    unit: AffineMap
    maps: tuple[ContextMap, ...]

    @classmethod
    def identity(cls, width: int, device: torch.device) -> Self:
        """Return the map that leaves contexts of a width unchanged."""
        matrix = torch.eye(width, dtype=torch.float64, device=float64_device(device))
        return cls(AffineMap(matrix, torch.zeros_like(matrix[0])), ())

    def with_maps(self, *maps: ContextMap) -> SequentialMap:
        """Return a sequence of other maps of the same width."""
        return SequentialMap(self.unit, maps)

    @property
    def is_affine(self) -> bool:
        """True if all maps are affine."""
        return all(context_map.is_affine for context_map in self.maps)

    def apply(self, context: Tensor) -> Tensor:
        """Return the context that is read after all maps."""
        return reduce(lambda before, context_map: context_map.apply(before), self.maps, context)

    def affine(self) -> AffineMap:
        """Return the same as one affine map in float64; only if `is_affine`."""
        return reduce(lambda first, then: then.affine().compose(first), self.maps, self.unit)


@dataclass(frozen=True)
class _MeanMap:
    """Maps that act on the same context, and the weight of each in the sum of their results."""

    maps: tuple[ContextMap, ...]
    weights: tuple[float, ...]

    @property
    def is_affine(self) -> bool:
        return all(context_map.is_affine for context_map in self.maps)

    def apply(self, context: Tensor) -> Tensor:
        return _weighted_sum([context_map.apply(context) for context_map in self.maps], self.weights)

    def affine(self) -> AffineMap:
        affines = [context_map.affine() for context_map in self.maps]
        matrix = _weighted_sum([affine.matrix for affine in affines], self.weights)
        return AffineMap(matrix, _weighted_sum([affine.shift for affine in affines], self.weights))


@dataclass(frozen=True)
class HypernetMap:
    """Combined effect of all hypernetworks on contexts of one width: one map for K and one for V."""

    kv_maps: tuple[SequentialMap, SequentialMap]

    def change(self, context: Tensor, kv_index: int) -> Tensor:
        """Return what the hypernetworks add to the context that K (index 0) or V (index 1) reads."""
        return self.kv_maps[kv_index].apply(context) - context

    def affine(self, kv_index: int) -> AffineMap:
        """Return what is added to a context c as an affine map A c + b in float64; only if `is_affine`.

        A network of Linear layers alone is affine: c + s (A c + b). So are several of them in sequence, and their mean.
        """
        full_map = self.kv_maps[kv_index].affine()
        return AffineMap(full_map.matrix - self.kv_maps[kv_index].unit.matrix, full_map.shift)

    @property
    def is_affine(self) -> bool:
        """True if both maps are affine, so that they can be folded into weights exactly."""
        return all(kv_map.is_affine for kv_map in self.kv_maps)


def hypernet_maps(base: Base, hypernetworks: Sequence[HypernetStrength]) -> dict[int, HypernetMap]:
    """Return the maps of hypernetworks, in the order given, by each context width that they change in the base."""
    maps_by_width: dict[int, HypernetMap] = {}
    for width in dict.fromkeys(context_width(layer) for _, layer in attention_layers(base.unet)):
        active = [(overlay, strength) for overlay, strength in hypernetworks if width in _widths(overlay)]
        if active:
            identity = SequentialMap.identity(width, base.device)
            maps_by_width[width] = HypernetMap(
                (_sequence(active, width, K, identity), _sequence(active, width, V, identity))
            )
    return maps_by_width


def context_source(name: str, layer: nn.Module) -> str:
    """Return the source of a layer's contexts: the text for cross-attention of one width, the layer for itself."""
    is_cross = bool(getattr(layer, "is_cross_attention", True))
    return f"text {context_width(layer)}" if is_cross else name


def _sequence(
    hypernetworks: Sequence[HypernetStrength], width: int, kv_index: int, identity: SequentialMap
) -> SequentialMap:
    maps = [_build_context_map(overlay, strength, width, kv_index, identity) for overlay, strength in hypernetworks]
    return identity.with_maps(*maps)


def _build_context_map(
    overlay: Hypernetwork | Composition, strength: float, width: int, kv_index: int, identity: SequentialMap
) -> ContextMap:
    """Return the map of an overlay at a strength, the identity if it has no network for that width."""
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


def _widths(overlay: Hypernetwork | Composition) -> Sequence[int]:
    return overlay.structure.widths if isinstance(overlay, Hypernetwork) else overlay.widths
