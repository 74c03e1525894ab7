"""What a hypernetwork does to the contexts of one width: x + strength * f(x), the plain way and the fast ones."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from velatura.overlays.affine import AffineMap, tensor_version
from velatura.overlays.hooks.memo import SharedContextCache, TensorMemo
from velatura.overlays.strength import LiveStrength, disable_inference_mode


class HypernetworkModule(nn.Module):
    """One residual network: x + strength * f(x), computed in its own precision, or in autocast's where that is on."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.linear = network  # the name in A1111's state dicts

    def forward(self, context: Tensor, strength: Tensor) -> Tensor:
        """Change a context (batch, tokens, width), keeping its dtype; where the strength is 0 it comes back exactly.

        strength: 0-d, or (batch, 1, 1).
        """
        inputs = self.cast_context(context)
        change: Tensor = self.linear(inputs)
        if self.training:  # A1111 trains at strength 1, whatever is set
            return (inputs + change).to(context.dtype)
        return blend_change(context, inputs, change, strength)

    @property
    def is_random(self) -> bool:
        """Whether it makes something else of the same context each time, while it is trained."""
        return any(isinstance(layer, nn.RReLU) or (isinstance(layer, nn.Dropout) and layer.p) for layer in self.linear)

    def cast_context(self, context: Tensor) -> Tensor:
        """The context in the precision that the network computes in."""
        autocast = torch.is_autocast_enabled(context.device.type)
        return context if autocast else context.to(next(self.linear.parameters()).dtype)


def blend_change(context: Tensor, inputs: Tensor, change: Tensor, strength: Tensor) -> Tensor:
    """The context with strength times its change on it, exactly itself where the strength is 0."""
    return torch.where(strength == 0, context, (inputs + change * strength).to(context.dtype))


class WidthChange:
    """The pair of one width, with the strength at which it lies over one base.

    The plain way (k, v) is what is traced and trained, and the reference; both() computes the same faster.
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
        """What K reads in place of a context."""
        self.move_to_device_of(context)
        return self._k(context, self.strength.per_row(context))

    def v(self, context: Tensor) -> Tensor:
        """What V reads in place of a context."""
        self.move_to_device_of(context)
        return self._v(context, self.strength.per_row(context))

    @property
    def training(self) -> bool:
        """Whether the networks are being trained, so that they must be computed the plain way."""
        return self._k.training or self._v.training

    @property
    def version(self) -> tuple[object, ...]:
        """Something that differs whenever the change does."""
        return self._clear_count, self.strength.version, *self._weights_version()

    @property
    def shared_cache(self) -> SharedContextCache | None:
        """What layers share while the networks are trained, unless each is to draw its own chance."""
        return self._shared_cache if self.training and not (self._k.is_random or self._v.is_random) else None

    def clear_cache(self) -> None:
        """Compute anew whatever was remembered, as after weights were written to unnoticed."""
        self._clear_count += 1
        self._shared_cache.clear()
        self._affine_maps = None
        self._changes.clear()
        self._outputs.clear()

    def k_and_v(self, k: Tensor, v: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
        """What K and V read; a constant context is computed once and remembered for as long as it is the same one."""
        if self.strength.number == 0:
            return k, v
        self.move_to_device_of(k)
        if constant:
            return self._outputs.get_or_compute((k, v), self.version, lambda: self._apply_constant(k, v))
        return self._apply_fast(self._k, k), self._apply_fast(self._v, v)

    @property
    def is_affine(self) -> bool:
        """Whether both networks are products of Linear layers."""
        return all(map(AffineMap.is_affine_network, (self._k.linear, self._v.linear)))

    @property
    def is_uniform(self) -> bool:
        """Whether all rows of a batch have one strength."""
        return self.strength.number is not None

    def affine_maps(self) -> tuple[AffineMap, AffineMap] | None:
        """The change as x -> matrix x + shift for K and for V; None where the strength is 0."""
        if not self.strength.number:
            return None
        state, cached = self._weights_version(), self._affine_maps
        if cached is None or cached[0] != state:
            cached = self._affine_maps = (
                state,
                (AffineMap.from_network(self._k.linear), AffineMap.from_network(self._v.linear)),
            )
        k, v = cached[1]
        return k.residual(self.strength.number), v.residual(self.strength.number)

    def move_to_device_of(self, context: Tensor) -> None:
        """Go to where a context is: a model that is offloaded computes elsewhere than where it lay when attached."""
        if torch.compiler.is_compiling():
            return
        self.strength.move_to(context.device)
        for module in (self._k, self._v):
            if next(module.parameters()).device != context.device:
                with disable_inference_mode():
                    module.to(context.device)

    def _apply_fast(self, module: HypernetworkModule, context: Tensor) -> Tensor:
        """The plain computation, with as few passes over the context as its precision allows."""
        if self.strength.number is None or torch.is_autocast_enabled(context.device.type):
            return module(context, self.strength.per_row(context))
        change: Tensor = module.linear(module.cast_context(context))
        return torch.add(context, change.to(context.dtype), alpha=self.strength.number)

    def _apply_constant(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A constant context and its change, which is remembered beside: another strength is one addition."""
        f, g = self._changes.get_or_compute((k, v), self._weights_version(), lambda: self._evaluate(k, v))
        strength = self.strength.per_row(k)
        return blend_change(k, self._k.cast_context(k), f, strength), blend_change(
            v, self._v.cast_context(v), g, strength
        )

    def _evaluate(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        return self._k.linear(self._k.cast_context(k)), self._v.linear(self._v.cast_context(v))

    def _weights_version(self) -> tuple[object, ...]:
        weights = chain(self._k.parameters(), self._v.parameters())
        return tuple(tensor_version(weight) for weight in weights)
