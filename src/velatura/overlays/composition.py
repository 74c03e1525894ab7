"""Hypernetworks put together into one: one after the other, or side by side, to any depth (.hns files)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor

from velatura.errors import BadOverlay
from velatura.overlays.affine import Affine
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.memory import Memory
from velatura.overlays.overlay import Card, Overlay, Part
from velatura.overlays.seams import Undo, on_contexts
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target
from velatura.overlays.transform import WidthChange, blended


@dataclass(frozen=True)
class Leaf:
    """A hypernetwork by name, at a strength of its own."""

    name: str
    strength: float = 1.0

    def __str__(self) -> str:
        return f"{self.name} {self.strength:g}"


@dataclass(frozen=True)
class Series:
    """Parts that act in order, each on what the one before made."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.parts))})"


@dataclass(frozen=True)
class Blend:
    """Parts that act on the same context; K and V read the mean of what they make, weighed."""

    parts: tuple[Node, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.parts) or sum(self.weights) <= 0 or min(self.weights) < 0:
            raise BadOverlay(f"weights {self.weights} blend nothing: give each part one, none below 0, not all 0")

    def __str__(self) -> str:
        total = sum(self.weights)
        shares = [f"{weight / total:.0%} {part}" for part, weight in zip(self.parts, self.weights, strict=True)]
        return f"{{{', '.join(shares)}}}"


Node = Leaf | Series | Blend


def leaves(node: Node) -> Iterator[Leaf]:
    """Every hypernetwork that a composition calls, in order."""
    if isinstance(node, Leaf):
        yield node
    else:
        for part in node.parts:
            yield from leaves(part)


class Composition(Overlay):
    """Hypernetworks in a tree, used as one: x + strength * (tree(x) - x)."""

    kind: ClassVar[str] = "hypernet"
    touches: ClassVar[frozenset[Part]] = frozenset({"unet"})

    def __init__(self, tree: Node, members: Mapping[str, Hypernetwork], name: str = "") -> None:
        super().__init__()
        self.tree = tree
        self.members = {leaf.name: members[leaf.name] for leaf in leaves(tree)}
        for index, member in enumerate(self.members.values()):
            self.add_module(str(index), member)
        families = {member.card.family for member in self.members.values()}
        family = families.pop() if len(families) == 1 else ""
        self.card = Card(kind=self.kind, name=name, outline=str(tree), family=family)
        self.eval()

    @property
    def widths(self) -> list[int]:
        """Every context width that some member changes."""
        return sorted({width for member in self.members.values() for width in member.structure.widths})

    @property
    def mixes_rows(self) -> bool:
        """Whether some member's change of one row of a batch depends on the others."""
        return any(member.mixes_rows for member in self.members.values())

    def transform(self, context: Tensor, strength: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """What K and V read in place of a context (batch, tokens, width)."""
        change = self._change(context.shape[-1], LiveStrength(strength, context.device))
        return change.k(context), change.v(context)

    def hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Hang the tree on every layer whose width some member changes."""
        for member in self.members.values():
            member.refuse_misfit(target)
        for width in self.widths:
            yield from on_contexts(target, width, self._change(width, strength))

    def _change(self, width: int, strength: LiveStrength) -> _TreeChange:
        return _TreeChange(self.tree, lambda leaf: self.members[leaf.name].change(width, leaf.strength), strength)


class _TreeChange:
    """What a tree makes of the contexts of one width."""

    is_affine = False

    def __init__(self, tree: Node, change_of: Callable[[Leaf], WidthChange | None], strength: LiveStrength) -> None:
        self._tree, self._strength = tree, strength
        self._changes = {leaf: change_of(leaf) for leaf in leaves(tree)}
        self._memory: Memory[tuple[Tensor, Tensor]] = Memory()

    @property
    def evaluations(self) -> int:
        return sum(each.evaluations for each in self._changes.values() if each)

    def forget(self) -> None:
        self._memory.forget()
        for each in self._changes.values():
            if each:
                each.forget()

    @property
    def training(self) -> bool:
        return any(each.training for each in self._changes.values() if each)

    @property
    def is_shared(self) -> bool:
        return self._strength.number is not None

    @property
    def version(self) -> tuple[object, ...]:
        return self._strength.version, *(each.version for each in self._changes.values() if each)

    @property
    def lessons(self) -> None:
        return None

    def k(self, context: Tensor) -> Tensor:
        return self._weighed(context, self._plain(self._tree, context, "k"))

    def v(self, context: Tensor) -> Tensor:
        return self._weighed(context, self._plain(self._tree, context, "v"))

    def both(self, k: Tensor, v: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
        if self._strength.number == 0:
            return k, v

        def make() -> tuple[Tensor, Tensor]:
            after = self._both(self._tree, (k, v), constant=constant)
            return self._weighed(k, after[0]), self._weighed(v, after[1])

        return self._memory.recall((k, v), self.version, make) if constant else make()

    def affine(self) -> tuple[Affine, Affine] | None:
        return None

    def _weighed(self, context: Tensor, after: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self._strength.follow(context.device)
        return blended(context, context, after - context, self._strength.per_row(context))

    def _plain(self, node: Node, context: Tensor, part: Literal["k", "v"]) -> Tensor:
        if isinstance(node, Leaf):
            change = self._changes[node]
            return context if change is None else getattr(change, part)(context)
        if isinstance(node, Series):
            return reduce(lambda before, each: self._plain(each, before, part), node.parts, context)
        return _mean(node, [self._plain(each, context, part) for each in node.parts])

    def _both(self, node: Node, pair: tuple[Tensor, Tensor], *, constant: bool) -> tuple[Tensor, Tensor]:
        if isinstance(node, Leaf):
            change = self._changes[node]
            return pair if change is None else change.both(*pair, constant=constant)
        if isinstance(node, Series):
            return reduce(lambda before, each: self._both(each, before, constant=constant), node.parts, pair)
        made = [self._both(each, pair, constant=constant) for each in node.parts]
        return _mean(node, [each[0] for each in made]), _mean(node, [each[1] for each in made])


def _mean(node: Blend, made: list[Tensor]) -> Tensor:
    total = sum(node.weights)
    return reduce(Tensor.add, (each * (weight / total) for each, weight in zip(made, node.weights, strict=True)))
