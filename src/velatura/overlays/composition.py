"""Compositions: hypernetworks combined into one, in series or blended, to any depth (.hns files)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor

from velatura.errors import BadOverlay
from velatura.overlays.hooks.context_hooks import ContextChange
from velatura.overlays.hooks.memo import TensorMemo
from velatura.overlays.hooks.seams import Undo, hook_contexts
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Card, Overlay, TargetPart
from velatura.overlays.strength import LiveStrength
from velatura.overlays.target import Target
from velatura.overlays.transform import WidthChange, blend_change


@dataclass(frozen=True)
class Leaf:
    """A hypernetwork by name, with its strength."""

    name: str
    strength: float = 1.0

    def __str__(self) -> str:
        return f"{self.name} {self.strength:g}"


@dataclass(frozen=True)
class Series:
    """Parts that act one after the other: a part changes the result of the part before it."""

    parts: tuple[Node, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.parts))})"


@dataclass(frozen=True)
class Blend:
    """Parts that act on the same context; K and V read the weighted mean of their results."""

    parts: tuple[Node, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.parts) or sum(self.weights) <= 0 or min(self.weights) < 0:
            raise BadOverlay(
                f"weights {self.weights} blend nothing: give one weight for each part, none below 0 and not all 0"
            )

    def __str__(self) -> str:
        total = sum(self.weights)
        shares = [f"{weight / total:.0%} {part}" for part, weight in zip(self.parts, self.weights, strict=True)]
        return f"{{{', '.join(shares)}}}"


Node = Leaf | Series | Blend


def leaves(node: Node) -> Iterator[Leaf]:
    """Yield all leaves of a composition, in order."""
    if isinstance(node, Leaf):
        yield node
    else:
        for part in node.parts:
            yield from leaves(part)


class Composition(Overlay):
    """A tree of hypernetworks, used as one: x + strength * (tree(x) - x).

    Attributes:
        tree: The composition.
        members: The hypernetworks by name.
        card: Name and outline.
    """

    kind: ClassVar[str] = "hypernet"
    kind_name: ClassVar[str] = "composition"
    target_parts: ClassVar[frozenset[TargetPart]] = frozenset({"unet"})

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
        """Return all context widths that some member changes, in features."""
        return sorted({width for member in self.members.values() for width in member.structure.widths})

    @property
    def is_batch_dependent(self) -> bool:
        """Return True if a member's change of one row of a batch depends on the other rows."""
        return any(member.is_batch_dependent for member in self.members.values())

    def transform(self, context: Tensor, strength: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Return what K and what V read in place of a context (batch, tokens, width)."""
        change = self._tree_change(context.shape[-1], LiveStrength(strength, context.device))
        return change.k(context), change.v(context)

    def install_hooks(self, target: Target, strength: LiveStrength) -> Iterator[Undo]:
        """Register the tree on all layers whose width some member changes."""
        for member in self.members.values():
            member.check_compatible(target)
        for width in self.widths:
            yield from hook_contexts(target, width, self._tree_change(width, strength))

    def _tree_change(self, width: int, strength: LiveStrength) -> _TreeChange:
        return _TreeChange(self.tree, lambda leaf: self.members[leaf.name].width_change(width, leaf.strength), strength)


class _TreeChange(ContextChange):
    """Change of the contexts of one width by a tree."""

    def __init__(self, tree: Node, get_change: Callable[[Leaf], WidthChange | None], strength: LiveStrength) -> None:
        self._tree, self._strength = tree, strength
        self._changes = {leaf: get_change(leaf) for leaf in leaves(tree)}
        self._memo: TensorMemo[tuple[Tensor, Tensor]] = TensorMemo()

    @property
    def evaluations(self) -> int:
        return sum(change.evaluations for change in self._changes.values() if change)

    def clear_cache(self) -> None:
        self._memo.clear()
        for change in self._changes.values():
            if change:
                change.clear_cache()

    @property
    def training(self) -> bool:
        return any(change.training for change in self._changes.values() if change)

    @property
    def is_uniform(self) -> bool:
        return self._strength.number is not None

    @property
    def version(self) -> tuple[object, ...]:
        return self._strength.version, *(change.version for change in self._changes.values() if change)

    def k(self, context: Tensor) -> Tensor:
        return self._apply_strength(context, self._apply_plain(self._tree, context, "k"))

    def v(self, context: Tensor) -> Tensor:
        return self._apply_strength(context, self._apply_plain(self._tree, context, "v"))

    def k_and_v(self, k: Tensor, v: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
        if self._strength.number == 0:
            return k, v

        def compute() -> tuple[Tensor, Tensor]:
            after = self._apply_fast(self._tree, (k, v), constant=constant)
            return self._apply_strength(k, after[0]), self._apply_strength(v, after[1])

        return self._memo.get_or_compute((k, v), self.version, compute) if constant else compute()

    def _apply_strength(self, context: Tensor, after: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self._strength.move_to(context.device)
        return blend_change(context, context, after - context, self._strength.per_row(context))

    def _apply_plain(self, node: Node, context: Tensor, part: Literal["k", "v"]) -> Tensor:
        if isinstance(node, Leaf):
            change = self._changes[node]
            return context if change is None else getattr(change, part)(context)
        if isinstance(node, Series):
            return reduce(lambda before, child: self._apply_plain(child, before, part), node.parts, context)
        return _weighted_mean(node, [self._apply_plain(child, context, part) for child in node.parts])

    def _apply_fast(self, node: Node, pair: tuple[Tensor, Tensor], *, constant: bool) -> tuple[Tensor, Tensor]:
        if isinstance(node, Leaf):
            change = self._changes[node]
            return pair if change is None else change.k_and_v(*pair, constant=constant)
        if isinstance(node, Series):
            return reduce(lambda before, child: self._apply_fast(child, before, constant=constant), node.parts, pair)
        results = [self._apply_fast(child, pair, constant=constant) for child in node.parts]
        k = _weighted_mean(node, [result[0] for result in results])
        v = _weighted_mean(node, [result[1] for result in results])
        return k, v


def _weighted_mean(node: Blend, results: list[Tensor]) -> Tensor:
    total = sum(node.weights)
    return reduce(Tensor.add, (result * (weight / total) for result, weight in zip(results, node.weights, strict=True)))
