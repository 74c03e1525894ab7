"""Change of the contexts of one width by a hypernetwork: x + strength * f(x), computed plainly or from caches."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from velatura.overlays.affine import AffineMap
from velatura.overlays.hooks.memo import SharedContextCache, TensorMemo, tensor_version
from velatura.overlays.strength import LiveStrength, disable_inference_mode


class HypernetworkModule(nn.Module):
    """Residual network x + strength * f(x), computed in the precision of its weights, or in autocast's if that is on.

    It has the name of A1111's class.
    """

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.linear = network  # the name in A1111's state dicts

    def forward(self, context: Tensor, strength: Tensor) -> Tensor:
        """Change a context and keep its dtype. Rows of strength 0 are returned exactly.

        Args:
            context: (batch, tokens, width).
            strength: 0-d, or (batch, 1, 1). Ignored in train mode.
        """
        inputs = self.cast_context(context)
        change: Tensor = self.linear(inputs)
        if self.training:  # A1111 trains at strength 1, whatever strength is set
            return (inputs + change).to(context.dtype)
        return blend_change(context, inputs, change, strength)

    @property
    def is_random(self) -> bool:
        """Return True if it is random in train mode: it has dropout or RReLU."""
        return any(isinstance(layer, nn.RReLU) or (isinstance(layer, nn.Dropout) and layer.p) for layer in self.linear)

    def cast_context(self, context: Tensor) -> Tensor:
        """Cast a context to the dtype of the weights, unless autocast does it."""
        autocast = torch.is_autocast_enabled(context.device.type)
        return context if autocast else context.to(next(self.linear.parameters()).dtype)


def blend_change(context: Tensor, inputs: Tensor, change: Tensor, strength: Tensor) -> Tensor:
    """Add strength times a change to a context; where the strength is 0, return the context exactly.

    Args:
        context: (batch, tokens, width); the result has its dtype.
        inputs: The same context in the precision of the change.
        change: (batch, tokens, width).
        strength: 0-d, or (batch, 1, 1).
    """
    return torch.where(strength == 0, context, (inputs + change * strength).to(context.dtype))


class WidthChange:
    """Networks for K and for V of one width, with their strength on one base.

    `k` and `v` compute plainly: they are what is compiled and trained, and the reference. `k_and_v` computes the same
    faster.
    """

    def __init__(self, k: HypernetworkModule, v: HypernetworkModule, strength: LiveStrength) -> None:
        self._k, self._v, self.strength = k, v, strength
        self._changes: TensorMemo[tuple[Tensor, Tensor]] = TensorMemo()
        self._outputs: TensorMemo[tuple[Tensor, Tensor]] = TensorMemo()
        self._affine_maps: tuple[object, tuple[AffineMap, AffineMap]] | None = None
        self._shared_cache = SharedContextCache()
        self._clear_count = 0
        self.evaluations = 0

    def k(self, context: Tensor) -> Tensor:
        """Return what K reads in place of a context."""
        self.move_to_device_of(context)
        return self._k(context, self.strength.per_row(context))

    def v(self, context: Tensor) -> Tensor:
        """Return what V reads in place of a context."""
        self.move_to_device_of(context)
        return self._v(context, self.strength.per_row(context))

    @property
    def training(self) -> bool:
        """Return True if the networks are in train mode, so that they must be computed plainly."""
        return self._k.training or self._v.training

    @property
    def version(self) -> tuple[object, ...]:
        """Return a key that differs whenever the change differs."""
        return self._clear_count, self.strength.version, *self._weights_version()

    @property
    def shared_cache(self) -> SharedContextCache | None:
        """Return the cache that layers share in training; None outside training and for networks that are random."""
        return self._shared_cache if self.training and not (self._k.is_random or self._v.is_random) else None

    def clear_cache(self) -> None:
        """Forget all computed values, for instance after unnoticed writes to weights."""
        self._clear_count += 1
        self._shared_cache.clear()
        self._affine_maps = None
        self._changes.clear()
        self._outputs.clear()

    def k_and_v(self, k: Tensor, v: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
        """Return what K and V read; the result for a constant context is cached while the same tensor comes."""
        if self.strength.number == 0:
            return k, v
        self.move_to_device_of(k)
        if constant:
            return self._outputs.get_or_compute((k, v), self.version, lambda: self._apply_constant(k, v))
        return self._apply_fast(self._k, k), self._apply_fast(self._v, v)

    @property
    def is_affine(self) -> bool:
        """Return True if both networks are products of Linear layers."""
        return all(map(AffineMap.is_affine_network, (self._k.linear, self._v.linear)))

    @property
    def is_uniform(self) -> bool:
        """Return True if all rows of a batch have one strength."""
        return self.strength.number is not None

    def affine_maps(self) -> tuple[AffineMap, AffineMap] | None:
        """Return the changes for K and for V as x -> matrix x + shift, or None if the strength is 0."""
        if not self.strength.number:
            return None
        version, cached = self._weights_version(), self._affine_maps
        if cached is None or cached[0] != version:
            maps = AffineMap.from_network(self._k.linear), AffineMap.from_network(self._v.linear)
            cached = self._affine_maps = version, maps
        k, v = cached[1]
        return k.residual(self.strength.number), v.residual(self.strength.number)

    def move_to_device_of(self, context: Tensor) -> None:
        """Move networks and strength to a context's device: an offloaded model does not compute where it is kept."""
        if torch.compiler.is_compiling():
            return
        self.strength.move_to(context.device)
        for module in (self._k, self._v):
            if next(module.parameters()).device != context.device:
                with disable_inference_mode():
                    module.to(context.device)

    def _apply_fast(self, module: HypernetworkModule, context: Tensor) -> Tensor:
        """Compute plainly, but with fewer passes over the context where its precision allows it."""
        if self.strength.number is None or torch.is_autocast_enabled(context.device.type):
            return module(context, self.strength.per_row(context))
        change: Tensor = module.linear(module.cast_context(context))
        return torch.add(context, change.to(context.dtype), alpha=self.strength.number)

    def _apply_constant(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Change a constant context. The changes are cached, so that a new strength costs one addition."""
        version = self._weights_version()
        k_change, v_change = self._changes.get_or_compute((k, v), version, lambda: self._evaluate(k, v))
        strength = self.strength.per_row(k)
        new_k = blend_change(k, self._k.cast_context(k), k_change, strength)
        new_v = blend_change(v, self._v.cast_context(v), v_change, strength)
        return new_k, new_v

    def _evaluate(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        return self._k.linear(self._k.cast_context(k)), self._v.linear(self._v.cast_context(v))

    def _weights_version(self) -> tuple[object, ...]:
        weights = chain(self._k.parameters(), self._v.parameters())
        return tuple(tensor_version(weight) for weight in weights)
