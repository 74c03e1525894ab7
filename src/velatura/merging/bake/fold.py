"""Fold the maps of hypernetworks into the weights of attention layers, and measure the error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from velatura.base.base import Base
from velatura.errors import UnsupportedBase
from velatura.merging.bake.calibration import Calibration
from velatura.merging.bake.hypernet_maps import KV_INDICES, HypernetMap, K, V, context_source
from velatura.merging.bake.regression import best_fit
from velatura.merging.bake.report import WidthFit
from velatura.merging.measures import relative_error
from velatura.overlays.affine import AffineMap
from velatura.overlays.attention_layers import attention_layers, context_width

PROJECTIONS = ("to_k", "to_v")


class LayerFit(NamedTuple):
    """An attention layer, and the affine maps that are added to the contexts of its K and V.

    Attributes:
        name: The layer's name in the UNet.
        layer: The layer.
        source: The source of its contexts, see `context_source`.
        k, v: The maps, in float64.
    """

    name: str
    layer: nn.Module
    source: str
    k: AffineMap
    v: AffineMap


@dataclass(frozen=True)
class LayerChange:
    """Weights to add to one attention layer.

    Attributes:
        name, layer, source: See `LayerFit`.
        products: What is added to the weights of to_k and to_v.
        shift: What is added to V, (inner width,).
    """

    name: str
    layer: nn.Module
    source: str
    products: tuple[Tensor, Tensor]
    shift: Tensor

    @classmethod
    def from_fit(cls, fit: LayerFit) -> Self:
        """Return the change by which a layer with context c reads c + k(c) and c + v(c), for affine k and v.

        K' = Wk (c + Ak c). The shift Wk bk is left out: it adds the same q Wk bk for every key, which softmax ignores.
        V' = Wv (c + Av c) + Wv bv.
        """
        to_k, to_v = (projection_weight(fit.layer, projection) for projection in PROJECTIONS)
        products = _multiply(to_k, fit.k.matrix), _multiply(to_v, fit.v.matrix)
        return cls(fit.name, fit.layer, fit.source, products, _multiply(to_v, fit.v.shift))

    @torch.no_grad()
    def add_to(self, layer: nn.Module) -> None:
        """Add the change to the weights of a layer of the same shape.

        The rows of the attention matrix sum to 1, so a shift t of V shifts the output of attention by t too. It goes
        through to_out into its bias: bo' = bo + Wo t.

        Raises:
            UnsupportedBase: V is shifted, and to_out has no bias.
        """
        for projection, product in zip(PROJECTIONS, self.products, strict=True):
            _add(projection_weight(layer, projection), product)
        if not bool(self.shift.any()):
            return
        to_out = cast("nn.Linear", layer.get_submodule("to_out.0"))
        if cast("Tensor | None", to_out.bias) is None:
            raise UnsupportedBase(
                f"{self.name} has no bias in to_out.0, which the hypernetworks would change: "
                "keep the overlays beside the base"
            )
        _add(to_out.bias, _multiply(to_out.weight, self.shift))

    @property
    def width(self) -> int:
        """Features of the contexts."""
        return context_width(self.layer)


def fit_layers(
    base: Base, maps_by_width: Mapping[int, HypernetMap], calibration: Calibration, *, fit_intercept: bool
) -> Iterator[LayerFit]:
    """Fit each attention layer that hypernetworks change; layers with the same contexts share one fit.

    Args:
        base: The base whose layers are fitted.
        maps_by_width: The hypernetworks' maps by context width.
        calibration: The moments of the contexts, for maps that are not affine.
        fit_intercept: True if V may be shifted by a constant. Otherwise a linear map replaces as much of the shift as
            the contexts allow.
    """
    maps_by_source: dict[str, tuple[AffineMap, AffineMap]] = {}
    for name, layer in attention_layers(base.unet):
        hypernet_map = maps_by_width.get(context_width(layer))
        if hypernet_map is None:
            continue
        source = context_source(name, layer)
        if source not in maps_by_source:
            maps_by_source[source] = _fit_maps(hypernet_map, source, calibration, fit_intercept=fit_intercept)
        k, v = maps_by_source[source]
        yield LayerFit(name, layer, source, k, v)


def measure_fits(
    maps_by_width: Mapping[int, HypernetMap], changes: Sequence[LayerChange], calibration: Calibration
) -> list[WidthFit]:
    """Return the errors of K and V on the held-out prompts, by context width."""
    fits: list[WidthFit] = []
    for width, hypernet_map in maps_by_width.items():
        width_changes = [change for change in changes if change.width == width]
        fits.append(_measure_fit(width, hypernet_map, width_changes, calibration))
    return fits


def projection_weight(layer: nn.Module, projection: str) -> Tensor:
    """Return the weight of a projection of an attention layer, such as "to_k"."""
    weight = layer.get_submodule(projection).weight
    assert isinstance(weight, Tensor)
    return weight


def _fit_maps(
    hypernet_map: HypernetMap, source: str, calibration: Calibration, *, fit_intercept: bool
) -> tuple[AffineMap, AffineMap]:
    """Return the maps for K and V: the hypernetworks' own if they are affine, fitted ones otherwise."""
    if not hypernet_map.is_affine:
        fitting, choosing, _ = calibration.split_moments(source, K)
        k = best_fit(fitting, choosing, fit_intercept=False)
        fitting, choosing, _ = calibration.split_moments(source, V)
        return k, best_fit(fitting, choosing, fit_intercept=fit_intercept)
    k, v = hypernet_map.affine(K), hypernet_map.affine(V)
    if fit_intercept or not bool(v.shift.any()):
        return k, v
    linear = AffineMap(v.matrix, torch.zeros_like(v.shift))
    fitting, choosing, _ = calibration.split_moments(source, V)
    remainder = best_fit(fitting.residual(linear), choosing.residual(linear), fit_intercept=False)
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
            _, _, held_out = calibration.split_moments(change.source, kv_index)
            weight = projection_weight(change.layer, PROJECTIONS[kv_index])
            shift = torch.zeros_like(change.shift) if kv_index == K else change.shift
            squared_error += held_out.squared_error(weight, change.products[kv_index], shift)
            squared_change += held_out.squared_change(weight)
            squared_output += held_out.squared_output(weight)
        errors[name] = relative_error(squared_error, squared_output)
        errors[f"{name}_missed"] = relative_error(squared_error, squared_change)
    return fit.model_copy(update=errors)


def _multiply(weight: Tensor, matrix: Tensor) -> Tensor:
    """Multiply in float64, on the device of the matrix."""
    return weight.to(matrix.device, torch.float64) @ matrix.double()


def _add(parameter: Tensor, change: Tensor) -> None:
    """Add in float64, and round once to the parameter's precision."""
    parameter.copy_(parameter.to(change.device, torch.float64) + change)
