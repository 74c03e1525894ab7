"""What goes into the weights of an attention layer, and how well that stands for what overlays did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import UnsupportedBase
from velatura.merging.chain import PARTS, Chain, K, V, source_of
from velatura.merging.moments import best_fit
from velatura.merging.record import Record
from velatura.merging.report import WidthFit
from velatura.overlays.affine import Affine
from velatura.overlays.layers import attention_layers, context_width

PROJECTIONS = ("to_k", "to_v")


@dataclass(frozen=True)
class LayerChange:
    """Weights to add to one attention layer of a base: products to to_k and to_v, and shift to what V is.

    source: of the layer's contexts.
    """

    name: str
    layer: nn.Module
    source: str
    products: tuple[Tensor, Tensor]
    shift: Tensor

    @classmethod
    def of(cls, name: str, layer: nn.Module, source: str, k: Affine, v: Affine) -> Self:
        """The change by which a layer whose context is c reads c + k(c) and c + v(c), for affine k and v.

        K' = Wk (c + Ak c), and the shift Wk bk may be left out: q K' + q Wk bk is more by the same for every key, which
        softmax does not see. V' = Wv (c + Av c) + Wv bv.
        """
        to_k, to_v = (weight_of(layer, each) for each in PROJECTIONS)
        return cls(name, layer, source, (_times(to_k, k.matrix), _times(to_v, v.matrix)), _times(to_v, v.shift))

    @torch.no_grad()
    def write(self, layer: nn.Module) -> None:
        """Add it to the weights of a layer that is shaped as the base's.

        As each row of attention sums to 1, what it makes of V + t is what it makes of V, plus t: a shift of V goes
        through to_out into its bias, bo' = bo + Wo t.
        """
        for projection, product in zip(PROJECTIONS, self.products, strict=True):
            _add(weight_of(layer, projection), product)
        if not bool(self.shift.any()):
            return
        to_out = cast("nn.Linear", layer.get_submodule("to_out.0"))
        if cast("Tensor | None", to_out.bias) is None:
            raise UnsupportedBase(
                f"{self.name} has no bias in to_out.0 to shift what attention says: keep the overlays beside the base"
            )
        _add(to_out.bias, _times(to_out.weight, self.shift))

    @property
    def width(self) -> int:
        """Features of the contexts."""
        return context_width(self.layer)


def mapped_layers(
    base: Base, by_width: Mapping[int, Chain], heard: Record, *, shifted: bool
) -> Iterator[tuple[str, nn.Module, str, tuple[Affine, Affine]]]:
    """Each attention layer that the chains change, its name before and its source behind, and what is added to c."""
    known: dict[str, tuple[Affine, Affine]] = {}
    for name, layer in attention_layers(base.unet):
        chain = by_width.get(context_width(layer))
        if chain is None:
            continue
        source = source_of(name, layer)
        if source not in known:
            known[source] = _maps(chain, source, heard, shifted=shifted)
        yield name, layer, source, known[source]


def fits(by_width: Mapping[int, Chain], changes: Sequence[LayerChange], heard: Record) -> list[WidthFit]:
    """How well each width's layers do on the held-out prompts."""
    by_size = {width: [each for each in changes if each.width == width] for width in by_width}
    return [_fit(width, chain, by_size[width], heard) for width, chain in by_width.items()]


def weight_of(layer: nn.Module, projection: str) -> Tensor:
    """The weight of a projection of an attention layer."""
    weight = layer.get_submodule(projection).weight
    assert isinstance(weight, Tensor)
    return weight


def relative(lost: float, whole: float) -> float:
    """The size of what is lost by that of the whole, from their squares."""
    return (lost / whole) ** 0.5 if whole else 0.0


def _maps(chain: Chain, source: str, heard: Record, *, shifted: bool) -> tuple[Affine, Affine]:
    """What is added for K and for V: the chain's own maps where it is affine, fitted ones elsewhere.

    shifted: V may be shifted. Where it may not, a linear map takes up as much of a shift as the contexts allow.
    """
    if not chain.is_exact:
        k, v = (best_fit(*heard.of(source, part)[:2], shifted=shifted and part == V) for part in PARTS)
        return k, v
    k, v = (chain.affine(part) for part in PARTS)
    if shifted or not bool(v.shift.any()):
        return k, v
    linear = Affine(v.matrix, torch.zeros_like(v.shift))
    rest = best_fit(*(each.less(linear) for each in heard.of(source, V)[:2]), shifted=False)
    return k, Affine(v.matrix + rest.matrix.to(v.matrix), linear.shift)


def _fit(width: int, chain: Chain, changes: Sequence[LayerChange], heard: Record) -> WidthFit:
    found = WidthFit(width=width, layers=len(changes), exact=chain.is_exact)
    if not heard.knows(changes[0].source):
        return found
    errors: dict[str, float] = {}
    for part, name in zip(PARTS, ("k", "v"), strict=True):
        lost = changed = whole = 0.0
        for each in changes:
            held, weight = heard.of(each.source, part)[-1], weight_of(each.layer, PROJECTIONS[part])
            shift = torch.zeros_like(each.shift) if part == K else each.shift
            lost += held.missed(weight, each.products[part], shift)
            changed += held.changed(weight)
            whole += held.whole(weight)
        errors |= {name: relative(lost, whole), f"{name}_missed": relative(lost, changed)}
    return found.model_copy(update=errors)


def _times(weight: Tensor, matrix: Tensor) -> Tensor:
    """The product in float64, where the matrix is."""
    return weight.to(matrix.device, torch.float64) @ matrix.double()


def _add(parameter: Tensor, more: Tensor) -> None:
    """Add in float64, and round once to the parameter's own precision."""
    parameter.copy_(parameter.to(more.device, torch.float64) + more)
