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

from velatura.overlays.affine import AffineMap, FoldedWeights, is_foldable, tensor_version
from velatura.overlays.hooks.memo import SharedContextCache

CombineMode = Literal["sequence", "sum", "average"]


class CachingChange(Protocol):
    """A change that remembers what it has computed."""

    @property
    def evaluations(self) -> int:
        """How often a network was run on a constant context."""
        ...

    def clear_cache(self) -> None:
        """Compute anew whatever was remembered."""
        ...


class ContextChange(CachingChange, Protocol):
    """What one overlay makes of the contexts of one width."""

    @property
    def shared_cache(self) -> SharedContextCache | None:
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

    def k_and_v(self, k: Tensor, v: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
        """What K and V read, the fast way; constant: the context stays the same through a generation."""
        ...

    @property
    def is_affine(self) -> bool:
        """Whether it is an affine map, so that it can be folded into what follows."""
        ...

    @property
    def is_uniform(self) -> bool:
        """Whether all rows of a batch are changed alike."""
        ...

    def affine_maps(self) -> tuple[AffineMap, AffineMap] | None:
        """The maps of K and of V, or None where they change nothing."""
        ...


@dataclass
class CombineGroup:
    """Overlays that act side by side, each on what came before them all; mode "sequence" is none of that."""

    mode: CombineMode
    size: int = 0


@dataclass(frozen=True, eq=False)
class ContextHook:
    """A change in its place before a layer; told hears once, with what K and V read before and after it."""

    change: ContextChange
    group: CombineGroup | None
    on_measure: Callable[[Sequence[Tensor], Sequence[Tensor]], None]


class _CallState(threading.local):
    """What one thread's call of a layer has computed before K, and needs again before V.

    context, v: what V is going to read in place of a context; folded: the weights of K and of V, where some are folded.
    """

    context: Tensor | None = None
    v: Tensor | None = None
    folded_weights: tuple[FoldedWeights, FoldedWeights] | None = None


class KVInput:
    """What stands before to_k and to_v of one layer: its changes in order, and what is folded into the layer itself.

    Links that are affine and come last fold into copies of the layer's own weights: K = (Wk M) c + Wk t, and V alike,
    for a change c -> M c + t. The copies are used only where nobody else hangs on the projections.
    """

    def __init__(self, layer: nn.Module, hooks: Sequence[ContextHook]) -> None:
        self.to_k, self.to_v = layer.get_submodule("to_k"), layer.get_submodule("to_v")
        self._constant = bool(getattr(layer, "is_cross_attention", True))
        self._hooks = tuple(hooks)
        self._unmeasured = set(range(len(hooks)))
        self._call = _CallState()
        self._folded_weights: tuple[object, tuple[FoldedWeights, FoldedWeights]] | None = None
        self._closed = False

    def __getstate__(self) -> dict[str, object]:
        """Only a forward that somebody wrapped around ours brings a copy of us along: there it does nothing more."""
        return {"to_k": self.to_k, "to_v": self.to_v, "_closed": True}

    def close(self) -> None:
        """Fold no more: whoever wrapped our way to project may go on calling it after we are gone."""
        self._closed = True
        self._folded_weights, self._call = None, _CallState()

    def k_pre_hook(self, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What to_k reads; what to_v is going to read is computed along and passed on."""
        context, *others = arguments
        if self._needs_plain_path():
            return self._apply_plain(context, part=0), *others
        count, call = self._count_unfolded_hooks(), self._call
        call.folded_weights = self._fold_weights(count) if count < len(self._hooks) else None
        if (
            call.folded_weights and self._unmeasured
        ):  # measured beside, so that the first step comes out as the later ones do
            self._apply_fast(context, self._hooks)
        k, v = self._apply_fast(context, self._hooks[:count])
        call.context, call.v = context, v
        return k, *others

    def v_pre_hook(self, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What to_v reads."""
        context, *others = arguments
        if self._needs_plain_path():
            return self._apply_plain(context, part=1), *others
        call = self._call
        call_context, v = call.context, call.v
        call.context = call.v = None
        if v is not None and call_context is context:
            return v, *others
        call.folded_weights = None
        return self._apply_plain(context, part=1), *others

    def project_k(self, context: Tensor) -> Tensor:
        """K of a context, with what is folded in."""
        return self._project(0, self.to_k, context)

    def project_v(self, context: Tensor) -> Tensor:
        """V of a context, with what is folded in."""
        return self._project(1, self.to_v, context)

    def _project(self, part: Literal[0, 1], layer: nn.Module, context: Tensor) -> Tensor:
        if self._closed or self._needs_plain_path() or self._call.folded_weights is None:
            return type(layer).forward(layer, context)
        weights = self._call.folded_weights[part]
        return functional.linear(context, weights.weight, weights.bias)

    def _needs_plain_path(self) -> bool:
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return True
        return any(hook.change.training for hook in self._hooks)

    def _apply_plain(self, context: Tensor, part: Literal[0, 1]) -> Tensor:
        for group in _group_hooks(self._hooks):
            context = _combine_results(
                context, [self._apply_change(hook.change, context, part) for hook in group], group[0].group
            )
        return context

    def _apply_change(self, change: ContextChange, context: Tensor, part: Literal[0, 1]) -> Tensor:
        compute = partial(change.v if part else change.k, context)
        if not self._constant or change.shared_cache is None:
            return compute()
        return change.shared_cache.get_or_compute(part, self, context, change.version, compute)

    def _apply_fast(self, context: Tensor, hooks: Sequence[ContextHook]) -> tuple[Tensor, Tensor]:
        k = v = context
        for group in _group_hooks(hooks):
            results = [hook.change.k_and_v(k, v, constant=self._constant) for hook in group]
            if self._unmeasured:
                self._measure(group, (k, v), results)
            k, v = (
                _combine_results(before, [result[part] for result in results], group[0].group)
                for part, before in enumerate((k, v))
            )
        return k, v

    def _measure(
        self, group: Sequence[ContextHook], before: Sequence[Tensor], results: Sequence[Sequence[Tensor]]
    ) -> None:
        for hook, after in zip(group, results, strict=True):
            index = self._hooks.index(hook)
            if index in self._unmeasured and after[0] is not before[0]:
                self._unmeasured.discard(index)
                hook.on_measure(before, after)

    def _count_unfolded_hooks(self) -> int:
        """How many links stand before those that fold; all, where none may."""
        count = len(self._hooks)
        if not all(is_foldable(layer, our_hook_count=1) for layer in (self.to_k, self.to_v)):
            return count
        forwards = ((self.to_k, self.project_k), (self.to_v, self.project_v))
        if any(vars(layer).get("forward") != project for layer, project in forwards):  # somebody else computes it
            return count
        while count and _is_foldable_hook(self._hooks[count - 1]):
            count -= 1
        return count

    def _fold_weights(self, count: int) -> tuple[FoldedWeights, FoldedWeights]:
        changes = [hook.change for hook in self._hooks[count:]]
        layers = [cast("nn.Linear", layer) for layer in (self.to_k, self.to_v)]
        state = (
            count,
            [change.version for change in changes],
            [tensor_version(parameter) for layer in layers for parameter in layer.parameters()],
        )
        cached = self._folded_weights
        if cached is None or cached[0] != state:
            map_pairs = [maps for change in changes if (maps := change.affine_maps())]
            k, v = (FoldedWeights.fold(layer, [pair[part] for pair in map_pairs]) for part, layer in enumerate(layers))
            cached = self._folded_weights = state, (k, v)
        return cached[1]


def _is_foldable_hook(hook: ContextHook) -> bool:
    return hook.group is None and hook.change.is_affine and hook.change.is_uniform


def _group_hooks(hooks: Sequence[ContextHook]) -> list[list[ContextHook]]:
    """Links that act side by side together, the others each for itself."""
    groups: list[list[ContextHook]] = []
    for hook in hooks:
        if groups and hook.group is not None and groups[-1][0].group is hook.group:
            groups[-1].append(hook)
        else:
            groups.append([hook])
    return groups


def _combine_results(before: Tensor, results: Sequence[Tensor], group: CombineGroup | None) -> Tensor:
    """One context out of what each link of a group made of the same one."""
    if group is None or group.size == 1:
        return results[0]
    weight = 1.0 if group.mode == "sum" else 1 / group.size
    changed_results = [result for result in results if result is not before]
    return (
        before
        if not changed_results
        else before + weight * sum((result - before for result in changed_results), torch.zeros_like(before))
    )
