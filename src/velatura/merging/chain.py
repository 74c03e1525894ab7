"""What several hypernetworks, one after the other, make of the contexts of one width."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import BadOverlay, NoEffect, UnsupportedBase
from velatura.overlays.affine import Affine, foldable
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.layers import attention_layers, context_width
from velatura.overlays.overlay import Overlay
from velatura.overlays.seams import refuse_bypasses
from velatura.overlays.strength import strength_tensor
from velatura.overlays.transform import Transform

K, V = 0, 1
PARTS = (K, V)

Laid = tuple[Hypernetwork, float]


@dataclass(frozen=True)
class Chain:
    """The networks of one width in the order in which they act, each with its strength; parts: K's and V's."""

    parts: tuple[tuple[tuple[Transform, Tensor], ...], ...]

    def change(self, context: Tensor, part: int) -> Tensor:
        """What all of them together add to what K (part 0) or V (part 1) reads."""
        read = context
        for network, strength in self.parts[part]:
            read = network(read, strength)
        return read - context

    def affine(self, part: int) -> Affine:
        """What is added to a context c as an affine map A c + b, in float64, where is_exact.

        A network of Linear layers alone is affine: c + s (A c + b). So is what several of them make one after another.
        """
        maps = [_exactly(Affine.of(network.linear), strength) for network, strength in self.parts[part]]
        read = reduce(lambda first, then: then.after(first), maps)
        return Affine(read.matrix - torch.eye(len(read.matrix)).to(read.matrix), read.shift)

    @property
    def is_exact(self) -> bool:
        """Whether all that they do is affine, so that nothing is lost when it goes into weights."""
        return all(Affine.fits(network.linear) for part in PARTS for network, _ in self.parts[part])


def laid_on(base: Base, overlays: Sequence[tuple[Overlay, float]]) -> list[Laid]:
    """Copies of the overlays that act, in eval mode where the base lives; what cannot go into weights is refused."""
    laid: list[Laid] = []
    for overlay, strength in overlays:
        if not isinstance(overlay, Hypernetwork):
            raise BadOverlay(f"{overlay.card} is no hypernetwork: only those go into weights so far")
        number = strength_tensor(strength)
        if number.ndim:
            raise BadOverlay("several strengths do not go into one set of weights: give one number")
        if number != 0:
            laid.append((deepcopy(overlay).eval().to(base.device), number.item()))
    if not laid:
        raise NoEffect(f"nothing is laid on {base.name}: give overlays with strengths other than 0")
    return laid


def chains(base: Base, laid: Sequence[Laid]) -> dict[int, Chain]:
    """The chain of each width that the overlays change and the base has."""
    widths = {context_width(layer): None for _, layer in attention_layers(base.unet)}
    found: dict[int, Chain] = {}
    for width in widths:
        acting = [(overlay, strength) for overlay, strength in laid if width in overlay.structure.widths]
        if acting:
            found[width] = Chain(tuple(tuple(_link(width, part, *each) for each in acting) for part in PARTS))
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


def _exactly(affine: Affine, strength: Tensor) -> Affine:
    """What is read, c + strength * (A c + b)."""
    device = "cpu" if affine.matrix.device.type == "mps" else affine.matrix.device  # mps knows no float64
    matrix, shift = (each.to(device, torch.float64) for each in (affine.matrix, affine.shift))
    return Affine(matrix, shift).residual(strength.item())


def _link(width: int, part: int, overlay: Hypernetwork, strength: float) -> tuple[Transform, Tensor]:
    network = cast("Transform", overlay.get_submodule(f"{width}_{part}"))
    device = next(network.parameters()).device
    return network, torch.tensor(strength, device=device)
