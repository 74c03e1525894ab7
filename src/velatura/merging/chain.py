"""What several hypernetworks, one after the other, make of the contexts of one width."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadOverlay, NoEffect, UnsupportedBase
from velatura.merging.links import Row, link
from velatura.merging.summed import LaidDeltas, number
from velatura.overlays.affine import Affine, foldable
from velatura.overlays.composition import Composition
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.layers import attention_layers, context_width
from velatura.overlays.overlay import Overlay
from velatura.overlays.seams import refuse_bypasses
from velatura.overlays.strength import Strength, writable

K, V = 0, 1
PARTS = (K, V)

Laid = tuple[Hypernetwork | Composition, float]


@dataclass(frozen=True)
class Chain:
    """The overlays that act on one width in their order; parts: what they make of it for K and for V."""

    parts: tuple[Row, Row]

    def change(self, context: Tensor, part: int) -> Tensor:
        """What all of them together add to what K (part 0) or V (part 1) reads."""
        return self.parts[part].read(context) - context

    def affine(self, part: int) -> Affine:
        """What is added to a context c as an affine map A c + b, in float64, where is_exact.

        A network of Linear layers alone is affine: c + s (A c + b). So is what several of them make one after another,
        and the mean of what they make.
        """
        read = self.parts[part].affine()
        return Affine(read.matrix - self.parts[part].unit.matrix, read.shift)

    @property
    def is_exact(self) -> bool:
        """Whether all that they do is affine, so that nothing is lost when it goes into weights."""
        return all(each.is_exact for each in self.parts)


@dataclass(frozen=True)
class Overlaid:
    """Overlays that are to go into the weights of a base: in their order, and by what is done with them."""

    all: list[tuple[Overlay, float | Strength]]
    networks: list[Laid]
    deltas: list[LaidDeltas]


def overlaid(base: Base, overlays: Sequence[tuple[Overlay, float | Strength]]) -> Overlaid:
    """Those that act, in eval mode where the base lives; what cannot go into weights is refused."""
    found = Overlaid([], [], [])
    for overlay, strength in overlays:
        if isinstance(overlay, Hypernetwork | Composition):
            one = number(strength.unet if isinstance(strength, Strength) else strength)
            if one:
                found.networks.append((deepcopy(overlay).eval().to(base.device), one))
                found.all.append(found.networks[-1])
            continue
        own = deepcopy(overlay).eval() if overlay.training else overlay
        with writable():
            own.to(base.device)
        laid = LaidDeltas.of(base, own, strength)
        if laid.acts:
            found.deltas.append(laid)
            found.all.append((own, strength))
    if not found.all:
        raise NoEffect(f"nothing is laid on {base.name}: give overlays with strengths other than 0")
    return found


def laid_on(base: Base, overlay: Overlay, strength: float) -> list[Laid]:
    """A copy of a hypernetwork or of several composed, that acts; any other overlay is refused."""
    if not isinstance(overlay, Hypernetwork | Composition):
        raise BadOverlay(
            f"{overlay.card} is no hypernetwork, and only those are fitted: velatura extract makes LoRAs of models"
        )
    return overlaid(base, [(overlay, strength)]).networks


def chains(base: Base, laid: Sequence[Laid]) -> dict[int, Chain]:
    """The chain of each width that the overlays change and the base has."""
    found: dict[int, Chain] = {}
    for width in dict.fromkeys(context_width(layer) for _, layer in attention_layers(base.unet)):
        acting = [each for each in laid if width in _widths(each[0])]
        if acting:
            nothing = Row.empty(width, base.device)
            k, v = (nothing.of(*(link(*each, width, part, nothing) for each in acting)) for part in PARTS)
            found[width] = Chain((k, v))
    return found


def refuse_laid_over(base: Base) -> None:
    """Refuse a base whose K and V are not the plain products of their weights: with overlays on it, say."""
    for name, layer in attention_layers(base.unet):
        refuse_bypasses(name, layer)
        if not all(foldable(layer.get_submodule(each)) for each in ("to_k", "to_v")):
            raise UnsupportedBase(f"{base.name} has something laid over {name}: detach all overlays from it first")


def source_of(name: str, layer: nn.Module) -> str:
    """Where a layer's contexts come from: cross-attention of one width all reads the same, self-attention its own."""
    crossing = bool(getattr(layer, "is_cross_attention", True))
    return f"text {context_width(layer)}" if crossing else name


def _widths(overlay: Hypernetwork | Composition) -> Sequence[int]:
    return overlay.structure.widths if isinstance(overlay, Hypernetwork) else overlay.widths
