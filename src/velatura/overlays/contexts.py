"""How changes of a context follow each other in front of one attention layer, and how that is made cheap."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from velatura.overlays.affine import Affine, FoldedWeights, foldable, stamp
from velatura.overlays.lessons import Lessons

Combine = Literal["sequence", "sum", "average"]


class Remembering(Protocol):
    """A change that remembers what it has computed."""

    @property
    def evaluations(self) -> int:
        """How often a network was run on a constant context."""
        ...

    def forget(self) -> None:
        """Compute anew whatever was remembered."""
        ...


class ContextChange(Remembering, Protocol):
    """What one overlay makes of the contexts of one width."""

    @property
    def lessons(self) -> Lessons | None:
        """What layers that read the same share while it is trained; None where each computes it for itself."""
        ...

    @property
    def training(self) -> bool:
        """Whether it must be computed the plain way."""
        ...

    @property
    def version(self) -> tuple[object, ...]:
        """Something that differs whenever the change does."""
        ...

    def k(self, context: Tensor) -> Tensor:
        """What K reads, the plain way."""
        ...

    def v(self, context: Tensor) -> Tensor:
        """What V reads, the plain way."""
        ...

    def both(self, k: Tensor, v: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
        """What K and V read, the fast way; constant: the context stays the same through a generation."""
        ...

    @property
    def is_affine(self) -> bool:
        """Whether it is an affine map, so that it can be folded into what follows."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether all rows of a batch are changed alike."""
        ...

    def affine(self) -> tuple[Affine, Affine] | None:
        """The maps of K and of V, or None where they change nothing."""
        ...


@dataclass
class Group:
    """Overlays that act side by side, each on what came before them all; mode "sequence" is none of that."""

    mode: Combine
    size: int = 0


@dataclass(frozen=True, eq=False)
class Link:
    """A change in its place before a layer; told hears once, with what K and V read before and after it."""

    change: ContextChange
    group: Group | None
    told: Callable[[Sequence[Tensor], Sequence[Tensor]], None]


class _Passing(threading.local):
    """What one thread's call of a layer has computed before K, and needs again before V.

    context, v: what V is going to read in place of a context; folded: the weights of K and of V, where some are folded.
    """

    context: Tensor | None = None
    v: Tensor | None = None
    folded: tuple[FoldedWeights, FoldedWeights] | None = None


class Reader:
    """What stands before to_k and to_v of one layer: its changes in order, and what is folded into the layer itself.

    Links that are affine and come last fold into copies of the layer's own weights: K = (Wk M) c + Wk t, and V alike,
    for a change c -> M c + t. The copies are used only where nobody else hangs on the projections.
    """

    def __init__(self, layer: nn.Module, links: Sequence[Link]) -> None:
        self.to_k, self.to_v = layer.get_submodule("to_k"), layer.get_submodule("to_v")
        self._constant = bool(getattr(layer, "is_cross_attention", True))
        self._links = tuple(links)
        self._untold = set(range(len(links)))
        self._passing = _Passing()
        self._folded: tuple[object, tuple[FoldedWeights, FoldedWeights]] | None = None
        self._closed = False

    def __getstate__(self) -> dict[str, object]:
        """Only a forward that somebody wrapped around ours brings a copy of us along: there it does nothing more."""
        return {"to_k": self.to_k, "to_v": self.to_v, "_closed": True}

    def close(self) -> None:
        """Fold no more: whoever wrapped our way to project may go on calling it after we are gone."""
        self._closed = True
        self._folded, self._passing = None, _Passing()

    def before_k(self, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What to_k reads; what to_v is going to read is computed along and passed on."""
        context, *others = arguments
        if self._must_be_plain():
            return self._plain(context, part=0), *others
        count, passing = self._count_before_fold(), self._passing
        passing.folded = self._fold(count) if count < len(self._links) else None
        if passing.folded and self._untold:  # measured beside, so that the first step comes out as the later ones do
            self._both(context, self._links)
        k, v = self._both(context, self._links[:count])
        passing.context, passing.v = context, v
        return k, *others

    def before_v(self, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What to_v reads."""
        context, *others = arguments
        if self._must_be_plain():
            return self._plain(context, part=1), *others
        passing = self._passing
        passed, v = passing.context, passing.v
        passing.context = passing.v = None
        if v is not None and passed is context:
            return v, *others
        passing.folded = None
        return self._plain(context, part=1), *others

    def project_k(self, context: Tensor) -> Tensor:
        """K of a context, with what is folded in."""
        return self._project(0, self.to_k, context)

    def project_v(self, context: Tensor) -> Tensor:
        """V of a context, with what is folded in."""
        return self._project(1, self.to_v, context)

    def _project(self, part: Literal[0, 1], layer: nn.Module, context: Tensor) -> Tensor:
        if self._closed or self._must_be_plain() or self._passing.folded is None:
            return type(layer).forward(layer, context)
        weights = self._passing.folded[part]
        return functional.linear(context, weights.weight, weights.bias)

    def _must_be_plain(self) -> bool:
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return True
        return any(link.change.training for link in self._links)

    def _plain(self, context: Tensor, part: Literal[0, 1]) -> Tensor:
        for group in _grouped(self._links):
            context = _merged(context, [self._read(link.change, context, part) for link in group], group[0].group)
        return context

    def _read(self, change: ContextChange, context: Tensor, part: Literal[0, 1]) -> Tensor:
        make = partial(change.v if part else change.k, context)
        if not self._constant or change.lessons is None:
            return make()
        return change.lessons.recall(part, self, context, change.version, make)

    def _both(self, context: Tensor, links: Sequence[Link]) -> tuple[Tensor, Tensor]:
        k = v = context
        for group in _grouped(links):
            read = [link.change.both(k, v, constant=self._constant) for link in group]
            if self._untold:
                self._tell(group, (k, v), read)
            k, v = (_merged(old, [each[i] for each in read], group[0].group) for i, old in enumerate((k, v)))
        return k, v

    def _tell(self, group: Sequence[Link], before: Sequence[Tensor], read: Sequence[Sequence[Tensor]]) -> None:
        for link, after in zip(group, read, strict=True):
            place = self._links.index(link)
            if place in self._untold and after[0] is not before[0]:
                self._untold.discard(place)
                link.told(before, after)

    def _count_before_fold(self) -> int:
        """How many links stand before those that fold; all, where none may."""
        count = len(self._links)
        if not all(foldable(each, ours=1) for each in (self.to_k, self.to_v)):
            return count
        ways = ((self.to_k, self.project_k), (self.to_v, self.project_v))
        if any(vars(layer).get("forward") != project for layer, project in ways):  # somebody else computes it
            return count
        while count and _folds(self._links[count - 1]):
            count -= 1
        return count

    def _fold(self, count: int) -> tuple[FoldedWeights, FoldedWeights]:
        changes = [link.change for link in self._links[count:]]
        layers = [cast("nn.Linear", layer) for layer in (self.to_k, self.to_v)]
        state = count, [each.version for each in changes], [stamp(own) for each in layers for own in each.parameters()]
        known = self._folded
        if known is None or known[0] != state:
            maps = [found for each in changes if (found := each.affine())]
            k, v = (FoldedWeights.of(layer, [each[part] for each in maps]) for part, layer in enumerate(layers))
            known = self._folded = state, (k, v)
        return known[1]


def _folds(link: Link) -> bool:
    return link.group is None and link.change.is_affine and link.change.is_shared


def _grouped(links: Sequence[Link]) -> list[list[Link]]:
    """Links that act side by side together, the others each for itself."""
    groups: list[list[Link]] = []
    for link in links:
        if groups and link.group is not None and groups[-1][0].group is link.group:
            groups[-1].append(link)
        else:
            groups.append([link])
    return groups


def _merged(before: Tensor, read: Sequence[Tensor], group: Group | None) -> Tensor:
    """One context out of what each link of a group made of the same one."""
    if group is None or group.size == 1:
        return read[0]
    share = 1.0 if group.mode == "sum" else 1 / group.size
    changed = [each for each in read if each is not before]
    return (
        before if not changed else before + share * sum((each - before for each in changed), torch.zeros_like(before))
    )
