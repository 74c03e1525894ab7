"""What a hypernetwork does to the contexts of one width: x + strength * f(x), the plain way and the fast ones."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn

from velatura.overlays.affine import Affine, stamp
from velatura.overlays.lessons import Lessons
from velatura.overlays.memory import Memory
from velatura.overlays.strength import LiveStrength, writable


class Transform(nn.Module):
    """One residual network: x + strength * f(x), computed in its own precision, or in autocast's where that is on."""

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        self.linear = network  # the name in A1111's state dicts

    def forward(self, context: Tensor, strength: Tensor) -> Tensor:
        """Change a context (batch, tokens, width), keeping its dtype; where the strength is 0 it comes back exactly.

        strength: 0-d, or (batch, 1, 1).
        """
        read = self.as_read(context)
        change: Tensor = self.linear(read)
        if self.training:  # A1111 trains at strength 1, whatever is set
            return (read + change).to(context.dtype)
        return blended(context, read, change, strength)

    @property
    def draws(self) -> bool:
        """Whether it makes something else of the same context each time, while it is trained."""
        return any(isinstance(each, nn.RReLU) or (isinstance(each, nn.Dropout) and each.p) for each in self.linear)

    def as_read(self, context: Tensor) -> Tensor:
        """The context in the precision that the network computes in."""
        autocast = torch.is_autocast_enabled(context.device.type)
        return context if autocast else context.to(next(self.linear.parameters()).dtype)


def blended(context: Tensor, read: Tensor, change: Tensor, strength: Tensor) -> Tensor:
    """The context with strength times its change on it, exactly itself where the strength is 0."""
    return torch.where(strength == 0, context, (read + change * strength).to(context.dtype))


class WidthChange:
    """The pair of one width, with the strength at which it lies over one base.

    The plain way (k, v) is what is traced and trained, and the reference; both() computes the same faster.
    """

    def __init__(self, k: Transform, v: Transform, strength: LiveStrength) -> None:
        self._k, self._v, self.strength = k, v, strength
        self._changes: Memory[tuple[Tensor, Tensor]] = Memory()
        self._outputs: Memory[tuple[Tensor, Tensor]] = Memory()
        self._affine: tuple[object, tuple[Affine, Affine]] | None = None
        self._lessons = Lessons()
        self._refreshes = 0
        self.evaluations = 0

    def k(self, context: Tensor) -> Tensor:
        """What K reads in place of a context."""
        self.follow(context)
        return self._k(context, self.strength.per_row(context))

    def v(self, context: Tensor) -> Tensor:
        """What V reads in place of a context."""
        self.follow(context)
        return self._v(context, self.strength.per_row(context))

    @property
    def training(self) -> bool:
        """Whether the networks are being trained, so that they must be computed the plain way."""
        return self._k.training or self._v.training

    @property
    def version(self) -> tuple[object, ...]:
        """Something that differs whenever the change does."""
        return self._refreshes, self.strength.version, *self._weights_version()

    @property
    def lessons(self) -> Lessons | None:
        """What layers share while the networks are trained, unless each is to draw its own chance."""
        return self._lessons if self.training and not (self._k.draws or self._v.draws) else None

    def forget(self) -> None:
        """Compute anew whatever was remembered, as after weights were written to unnoticed."""
        self._refreshes += 1
        self._lessons.forget()
        self._affine = None
        self._changes.forget()
        self._outputs.forget()

    def both(self, k: Tensor, v: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
        """What K and V read; a constant context is computed once and remembered for as long as it is the same one."""
        if self.strength.number == 0:
            return k, v
        self.follow(k)
        if constant:
            return self._outputs.recall((k, v), self.version, lambda: self._blended(k, v))
        return self._mixed(self._k, k), self._mixed(self._v, v)

    @property
    def is_affine(self) -> bool:
        """Whether both networks are products of Linear layers."""
        return all(map(Affine.fits, (self._k.linear, self._v.linear)))

    @property
    def is_shared(self) -> bool:
        """Whether all rows of a batch have one strength."""
        return self.strength.number is not None

    def affine(self) -> tuple[Affine, Affine] | None:
        """The change as x -> matrix x + shift for K and for V; None where the strength is 0."""
        if not self.strength.number:
            return None
        state, known = self._weights_version(), self._affine
        if known is None or known[0] != state:
            known = self._affine = state, (Affine.of(self._k.linear), Affine.of(self._v.linear))
        k, v = known[1]
        return k.residual(self.strength.number), v.residual(self.strength.number)

    def follow(self, context: Tensor) -> None:
        """Go to where a context is: a model that is offloaded computes elsewhere than where it lay when attached."""
        if torch.compiler.is_compiling():
            return
        self.strength.follow(context.device)
        for transform in (self._k, self._v):
            if next(transform.parameters()).device != context.device:
                with writable():
                    transform.to(context.device)

    def _mixed(self, transform: Transform, context: Tensor) -> Tensor:
        """The plain computation, with as few passes over the context as its precision allows."""
        if self.strength.number is None or torch.is_autocast_enabled(context.device.type):
            return transform(context, self.strength.per_row(context))
        change: Tensor = transform.linear(transform.as_read(context))
        return torch.add(context, change.to(context.dtype), alpha=self.strength.number)

    def _blended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A constant context and its change, which is remembered beside: another strength is one addition."""
        f, g = self._changes.recall((k, v), self._weights_version(), lambda: self._evaluated(k, v))
        strength = self.strength.per_row(k)
        return blended(k, self._k.as_read(k), f, strength), blended(v, self._v.as_read(v), g, strength)

    def _evaluated(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.evaluations += 1
        return self._k.linear(self._k.as_read(k)), self._v.linear(self._v.as_read(v))

    def _weights_version(self) -> tuple[object, ...]:
        weights = chain(self._k.parameters(), self._v.parameters())
        return tuple(stamp(each) for each in weights)
