"""What one overlay makes of the contexts of one width: as a function, and as an affine map where it is one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Protocol, Self, cast

import torch
from torch import Tensor

from velatura.overlays.affine import Affine, doubled, with_float64
from velatura.overlays.composition import Blend, Composition, Leaf, Node
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.transform import Transform


class Link(Protocol):
    """What is read in place of a context."""

    @property
    def is_exact(self) -> bool:
        """Whether it is affine, so that nothing is lost when it goes into weights."""
        ...

    def read(self, context: Tensor) -> Tensor:
        """What is read in place of a context (pictures, tokens, width)."""
        ...

    def affine(self) -> Affine:
        """The same as a map, in float64; only where it is exact."""
        ...


@dataclass(frozen=True)
class _Net:
    """A network of a hypernetwork, c + strength * f(c)."""

    transform: Transform
    strength: Tensor

    @property
    def is_exact(self) -> bool:
        return Affine.fits(self.transform.linear)

    def read(self, context: Tensor) -> Tensor:
        return self.transform(context, self.strength)

    def affine(self) -> Affine:
        found = Affine.of(self.transform.linear)
        return Affine(doubled(found.matrix), doubled(found.shift)).residual(self.strength.item())


@dataclass(frozen=True)
class Row:
    """Links that act in order, each on what the one before made; unit: the map that changes nothing."""

    unit: Affine
    links: tuple[Link, ...]

    @classmethod
    def empty(cls, width: int, device: torch.device) -> Self:
        """What leaves contexts of a width as they are."""
        matrix = torch.eye(width, dtype=torch.float64, device=with_float64(device))
        return cls(Affine(matrix, torch.zeros_like(matrix[0])), ())

    def of(self, *links: Link) -> Row:
        """A row of other links."""
        return Row(self.unit, links)

    @property
    def is_exact(self) -> bool:
        """Whether all of them are affine."""
        return all(each.is_exact for each in self.links)

    def read(self, context: Tensor) -> Tensor:
        """What is read in place of a context after all of them."""
        return reduce(lambda before, each: each.read(before), self.links, context)

    def affine(self) -> Affine:
        """The same as a map, in float64; only where all of them are exact."""
        return reduce(lambda first, then: then.affine().after(first), self.links, self.unit)


@dataclass(frozen=True)
class _Mean:
    """Links that act on the same context, and the share that each has in what is read."""

    links: tuple[Link, ...]
    shares: tuple[float, ...]

    @property
    def is_exact(self) -> bool:
        return all(each.is_exact for each in self.links)

    def read(self, context: Tensor) -> Tensor:
        return _mixed([each.read(context) for each in self.links], self.shares)

    def affine(self) -> Affine:
        maps = [each.affine() for each in self.links]
        return Affine(*(_mixed(each, self.shares) for each in ([m.matrix for m in maps], [m.shift for m in maps])))


def link(overlay: Hypernetwork | Composition, strength: float, width: int, part: int, nothing: Row) -> Link:
    """What an overlay at a strength makes of the contexts of a width for K (part 0) or V (part 1); perhaps nothing."""
    if isinstance(overlay, Hypernetwork):
        return _net(overlay, strength, width, part) or nothing
    tree = _node(overlay.tree, overlay, width, part, nothing)
    return _Mean((tree, nothing), (strength, 1 - strength))  # c + strength * (tree(c) - c)


def _node(node: Node, whole: Composition, width: int, part: int, nothing: Row) -> Link:
    if isinstance(node, Leaf):
        return _net(whole.members[node.name], node.strength, width, part) or nothing
    links = [_node(each, whole, width, part, nothing) for each in node.parts]
    if isinstance(node, Blend):
        return _Mean(tuple(links), tuple(weight / sum(node.weights) for weight in node.weights))
    return nothing.of(*links)


def _net(overlay: Hypernetwork, strength: float, width: int, part: int) -> _Net | None:
    if width not in overlay.structure.widths:
        return None
    transform = cast("Transform", overlay.get_submodule(f"{width}_{part}"))
    return _Net(transform, torch.tensor(strength, device=next(transform.parameters()).device))


def _mixed(tensors: list[Tensor], shares: tuple[float, ...]) -> Tensor:
    return reduce(torch.add, (share * each for each, share in zip(tensors, shares, strict=True)))
