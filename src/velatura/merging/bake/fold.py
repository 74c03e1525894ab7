"""What goes into the weights of an attention layer, and how well that stands for what overlays did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import UnsupportedBase
from velatura.merging.bake.calibration import Calibration
from velatura.merging.bake.hypernet_maps import KV_INDICES, HypernetMap, K, V, context_source
from velatura.merging.bake.regression import best_fit
from velatura.merging.bake.report import WidthFit
from velatura.overlays.affine import AffineMap
from velatura.overlays.attention_layers import attention_layers, context_width

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
    def from_maps(cls, name: str, layer: nn.Module, source: str, k: AffineMap, v: AffineMap) -> Self:
        """The change by which a layer whose context is c reads c + k(c) and c + v(c), for affine k and v.

        K' = Wk (c + Ak c), and the shift Wk bk may be left out: q K' + q Wk bk is more by the same for every key, which
        softmax does not see. V' = Wv (c + Av c) + Wv bv.
        """
        to_k, to_v = (projection_weight(layer, projection) for projection in PROJECTIONS)
        return cls(
            name, layer, source, (_multiply(to_k, k.matrix), _multiply(to_v, v.matrix)), _multiply(to_v, v.shift)
        )

    @torch.no_grad()
    def add_to(self, layer: nn.Module) -> None:
        """Add it to the weights of a layer that is shaped as the base's.

        As each row of attention sums to 1, what it makes of V + t is what it makes of V, plus t: a shift of V goes
        through to_out into its bias, bo' = bo + Wo t.
        """
        for projection, product in zip(PROJECTIONS, self.products, strict=True):
            _add(projection_weight(layer, projection), product)
        if not bool(self.shift.any()):
            return
        to_out = cast("nn.Linear", layer.get_submodule("to_out.0"))
        if cast("Tensor | None", to_out.bias) is None:
            raise UnsupportedBase(
                f"{self.name} has no bias in to_out.0 to shift what attention says: keep the overlays beside the base"
            )
        _add(to_out.bias, _multiply(to_out.weight, self.shift))

    @property
    def width(self) -> int:
        """Features of the contexts."""
        return context_width(self.layer)


def fit_layers(
    base: Base, maps_by_width: Mapping[int, HypernetMap], calibration: Calibration, *, fit_intercept: bool
) -> Iterator[tuple[str, nn.Module, str, tuple[AffineMap, AffineMap]]]:
    """Each attention layer that the chains change, its name before and its source behind, and what is added to c."""
    maps_by_source: dict[str, tuple[AffineMap, AffineMap]] = {}
    for name, layer in attention_layers(base.unet):
        hypernet_map = maps_by_width.get(context_width(layer))
        if hypernet_map is None:
            continue
        source = context_source(name, layer)
        if source not in maps_by_source:
            maps_by_source[source] = _fit_maps(hypernet_map, source, calibration, fit_intercept=fit_intercept)
        yield name, layer, source, maps_by_source[source]


def measure_fits(
    maps_by_width: Mapping[int, HypernetMap], changes: Sequence[LayerChange], calibration: Calibration
) -> list[WidthFit]:
    """How well each width's layers do on the held-out prompts."""
    changes_by_width = {width: [change for change in changes if change.width == width] for width in maps_by_width}
    return [
        _measure_fit(width, hypernet_map, changes_by_width[width], calibration)
        for width, hypernet_map in maps_by_width.items()
    ]


def projection_weight(layer: nn.Module, projection: str) -> Tensor:
    """The weight of a projection of an attention layer."""
    weight = layer.get_submodule(projection).weight
    assert isinstance(weight, Tensor)
    return weight


def relative_error(squared_error: float, squared_total: float) -> float:
    """The size of what is lost by that of the whole, from their squares."""
    return (squared_error / squared_total) ** 0.5 if squared_total else 0.0


def _fit_maps(
    hypernet_map: HypernetMap, source: str, calibration: Calibration, *, fit_intercept: bool
) -> tuple[AffineMap, AffineMap]:
    """What is added for K and for V: the chain's own maps where it is affine, fitted ones elsewhere.

    shifted: V may be shifted. Where it may not, a linear map takes up as much of a shift as the contexts allow.
    """
    if not hypernet_map.is_affine:
        k, v = (
            best_fit(*calibration.split_moments(source, kv_index)[:2], fit_intercept=fit_intercept and kv_index == V)
            for kv_index in KV_INDICES
        )
        return k, v
    k, v = (hypernet_map.affine(kv_index) for kv_index in KV_INDICES)
    if fit_intercept or not bool(v.shift.any()):
        return k, v
    linear = AffineMap(v.matrix, torch.zeros_like(v.shift))
    remainder = best_fit(
        *(moments.residual(linear) for moments in calibration.split_moments(source, V)[:2]), fit_intercept=False
    )
    return k, AffineMap(v.matrix + remainder.matrix.to(v.matrix), linear.shift)


def _measure_fit(
    width: int, hypernet_map: HypernetMap, changes: Sequence[LayerChange], calibration: Calibration
) -> WidthFit:
    fit = WidthFit(width=width, layers=len(changes), exact=hypernet_map.is_affine)
    if not calibration.has_source(changes[0].source):
        return fit
    errors: dict[str, float] = {}
    for kv_index, name in zip(KV_INDICES, ("k", "v"), strict=True):
        squared_error = squared_change = squared_output = 0.0
        for change in changes:
            held_out, weight = (
                calibration.split_moments(change.source, kv_index)[-1],
                projection_weight(change.layer, PROJECTIONS[kv_index]),
            )
            shift = torch.zeros_like(change.shift) if kv_index == K else change.shift
            squared_error += held_out.squared_error(weight, change.products[kv_index], shift)
            squared_change += held_out.squared_change(weight)
            squared_output += held_out.squared_output(weight)
        errors |= {
            name: relative_error(squared_error, squared_output),
            f"{name}_missed": relative_error(squared_error, squared_change),
        }
    return fit.model_copy(update=errors)


def _multiply(weight: Tensor, matrix: Tensor) -> Tensor:
    """The product in float64, where the matrix is."""
    return weight.to(matrix.device, torch.float64) @ matrix.double()


def _add(parameter: Tensor, change: Tensor) -> None:
    """Add in float64, and round once to the parameter's own precision."""
    parameter.copy_(parameter.to(change.device, torch.float64) + change)
