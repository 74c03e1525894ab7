"""What one overlay makes of the contexts of one width: as a function, and as an affine map where it is one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Protocol, Self, cast

import torch
from torch import Tensor

from velatura.overlays.affine import AffineMap, float64_device, to_float64
from velatura.overlays.composition import Blend, Composition, Leaf, Node
from velatura.overlays.hypernetwork import Hypernetwork
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
