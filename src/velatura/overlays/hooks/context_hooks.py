"""Changes of the context in front of one attention layer: their order, their caches, and folding them into weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from velatura.overlays.affine import AffineMap, FoldedWeights, is_foldable
from velatura.overlays.hooks.memo import SharedContextCache, tensor_version

CombineMode = Literal["sequence", "sum", "average"]


class CachingChange(Protocol):
    """Change that caches what it has computed."""

    @property
    def evaluations(self) -> int:
        """Return the number of network evaluations on constant contexts so far."""
        ...

    def clear_cache(self) -> None:
        """Forget all computed values."""
        ...


class ContextChange(CachingChange, Protocol):
    """Change of the contexts of one width by one overlay.

    Classes that inherit it get a change that is not affine and shares nothing in training.
    """

    @property
    def shared_cache(self) -> SharedContextCache | None:
        """Return the cache for layers that read the same context in training; None if nothing is shared."""
        return None

    @property
    def training(self) -> bool:
        """Return True if it must be computed plainly, by `k` and `v`."""
        ...

    @property
    def version(self) -> tuple[object, ...]:
        """Return a key that differs whenever the change differs."""
        ...

    def k(self, context: Tensor) -> Tensor:
        """Return what K reads, computed plainly."""
        ...

    def v(self, context: Tensor) -> Tensor:
        """Return what V reads, computed plainly."""
        ...

    def k_and_v(self, k: Tensor, v: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
        """Return what K and V read, computed fast; `constant`: the context is the same through a generation."""
        ...

    @property
    def is_affine(self) -> bool:
        """Return True if it is an affine map, so that it can be folded into the layer's weights."""
        return False

    @property
    def is_uniform(self) -> bool:
        """Return True if all rows of a batch have one strength."""
        ...

    def affine_maps(self) -> tuple[AffineMap, AffineMap] | None:
        """Return the maps for K and for V, or None if they change nothing."""
        return None


@dataclass
class CombineGroup:
    """Overlays that act on the same input, and whose changes are added or averaged.

    Attributes:
        mode: "sum" or "average".
        size: Number of overlays in the group.
    """

    mode: CombineMode
    size: int = 0


@dataclass(frozen=True, eq=False)
class ContextHook:
    """One change in front of one layer.

    Attributes:
        change: The change.
        group: Overlays with which it acts side by side, or None.
        on_measure: Called once, with what K and V read before and after the change.
    """

    change: ContextChange
    group: CombineGroup | None
    on_measure: Callable[[Sequence[Tensor], Sequence[Tensor]], None]


class _CallState(threading.local):
    """Values that one thread computes before to_k of a layer, and uses again before to_v.

    Attributes:
        context: The context for which they were computed.
        v: What V reads in place of the context.
        folded_weights: Weights of K and of V, if changes are folded into them.
    """

    context: Tensor | None = None
    v: Tensor | None = None
    folded_weights: tuple[FoldedWeights, FoldedWeights] | None = None


class KVInput:
    """Input of to_k and to_v of one layer: all changes of its context, in order.

    The last changes, if they are affine, are folded into copies of the layer's weights: for a change c -> M c + t,
    K = (Wk M) c + Wk t, and V likewise. The copies are used only if the projections have no other hooks.
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
        """Return a state that does nothing: only a forward that someone wrapped around ours is copied with us in it."""
        return {"to_k": self.to_k, "to_v": self.to_v, "_closed": True}

    def close(self) -> None:
        """Stop folding: a forward that someone wrapped around ours may be called after the hooks are removed."""
        self._closed = True
        self._folded_weights, self._call = None, _CallState()

    def k_pre_hook(self, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what to_k reads, and keep what to_v is going to read."""
        context, *others = arguments
        if self._needs_plain_path():
            return self._apply_plain(context, part=0), *others
        count, call = self._count_unfolded_hooks(), self._call
        call.folded_weights = self._fold_weights(count) if count < len(self._hooks) else None
        if call.folded_weights and self._unmeasured:
            self._apply_fast(context, self._hooks)  # only to measure: the result is the same as in later steps
        k, v = self._apply_fast(context, self._hooks[:count])
        call.context, call.v = context, v
        return k, *others

    def v_pre_hook(self, _layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return what to_v reads."""
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
        """Compute K of a context with the folded weights."""
        return self._project(0, self.to_k, context)

    def project_v(self, context: Tensor) -> Tensor:
        """Compute V of a context with the folded weights."""
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
            results = [self._apply_change(hook.change, context, part) for hook in group]
            context = _combine_results(context, results, group[0].group)
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
            k = _combine_results(k, [result[0] for result in results], group[0].group)
            v = _combine_results(v, [result[1] for result in results], group[0].group)
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
        """Return the number of changes in front of those that are folded; all of them if none may be folded."""
        count = len(self._hooks)
        if not all(is_foldable(layer, our_hook_count=1) for layer in (self.to_k, self.to_v)):
            return count
        forwards = ((self.to_k, self.project_k), (self.to_v, self.project_v))
        if any(vars(layer).get("forward") != project for layer, project in forwards):  # another forward is in place
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
            map_pairs = [maps for maps in (change.affine_maps() for change in changes) if maps]
            k, v = (FoldedWeights.fold(layer, [pair[part] for pair in map_pairs]) for part, layer in enumerate(layers))
            cached = self._folded_weights = state, (k, v)
        return cached[1]


def _is_foldable_hook(hook: ContextHook) -> bool:
    return hook.group is None and hook.change.is_affine and hook.change.is_uniform


def _group_hooks(hooks: Sequence[ContextHook]) -> list[list[ContextHook]]:
    """Split hooks into runs of one group; a hook without a group is a run by itself."""
    groups: list[list[ContextHook]] = []
    for hook in hooks:
        if groups and hook.group is not None and groups[-1][0].group is hook.group:
            groups[-1].append(hook)
        else:
            groups.append([hook])
    return groups


def _combine_results(before: Tensor, results: Sequence[Tensor], group: CombineGroup | None) -> Tensor:
    """Add or average the changes that a group made to one context."""
    if group is None or group.size == 1:
        return results[0]
    weight = 1.0 if group.mode == "sum" else 1 / group.size
    changes = [result - before for result in results if result is not before]
    if not changes:
        return before
    return before + weight * sum(changes, torch.zeros_like(before))
