"""Combine the changes of one layer: put ranks side by side, or sum whole changes, and reduce them if asked to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import cast

import torch
from torch import Tensor

from velatura.errors import BadOverlay, WrongBase
from velatura.merging.lora.svd import low_rank_delta, nearest_low_rank, reduce_rank
from velatura.merging.measures import squared_norm
from velatura.overlays.deltas.delta import Delta, TensorShape
from velatura.overlays.deltas.full import FullDelta, NormDelta
from velatura.overlays.deltas.low_rank import BIAS_DIFF, LORA_DOWN, LORA_MID, LORA_UP, BiasedLowRankDelta, LowRankDelta
from velatura.overlays.deltas.product import DORA_SCALE, ProductDelta

ScaledDeltas = Sequence[tuple[Delta, float]]  # changes with their strengths


@dataclass(frozen=True)
class CombinedLayer:
    """Combined change of one layer, and the squares of its error and of the exact change."""

    delta: Delta
    squared_error: float = 0.0
    squared_change: float = 0.0


def combine_layer(
    layer_name: str, scaled_deltas: ScaledDeltas, weight: Tensor | None, rank: int | None, tolerance: float | None
) -> CombinedLayer | None:
    """Combine several changes of one layer.

    Args:
        layer_name: The name of the layer in kohya's files, for messages.
        scaled_deltas: The changes with their strengths.
        weight: The base's weight, if there is a base.
        rank, tolerance: Reduce the result, see `nearest_low_rank`; both None keep it exact.

    Returns:
        The combined change, as a product if all of them are products; None if nothing is left.

    Raises:
        BadOverlay: A change depends on the base's weight, and the base is missing.
        WrongBase: The changes are of different sizes.
    """
    shape = _weight_shape(layer_name, scaled_deltas, weight)
    factors = [_low_rank_factors(delta, strength) for delta, strength in scaled_deltas]
    if None not in factors:
        return _combine_factors(cast("list[tuple[Tensor, Tensor]]", factors), shape, rank, tolerance)
    changes = [
        delta.weight_delta(_weight_for(layer_name, delta, weight, shape), strength).cpu()
        for delta, strength in scaled_deltas
    ]
    biases = [delta.bias_delta(None, strength) for delta, strength in scaled_deltas]
    present_biases = [bias.cpu() for bias in biases if bias is not None]
    change = reduce(add, changes)
    bias = reduce(add, present_biases) if present_biases else None
    if any(isinstance(delta, NormDelta) for delta, _ in scaled_deltas):
        return CombinedLayer(NormDelta.from_tensors(_with_bias({"w_norm": change}, "b_norm", bias)))
    if rank is None and tolerance is None:
        return CombinedLayer(FullDelta.from_tensors(_with_bias({"diff": change}, BIAS_DIFF, bias)))
    return _reduce_change(change, bias, rank, tolerance)


def _combine_factors(
    factors: Sequence[tuple[Tensor, Tensor]], shape: TensorShape, rank: int | None, tolerance: float | None
) -> CombinedLayer:
    """Put the ranks of products side by side, and reduce them if asked to."""
    device = factors[0][0].device
    up = torch.cat([factor_up.to(device) for factor_up, _ in factors], 1)
    down = torch.cat([factor_down.to(device) for _, factor_down in factors], 0)
    if rank is None and tolerance is None:
        return CombinedLayer(low_rank_delta(up, down, shape))
    reduced_up, reduced_down = reduce_rank(up, down, rank, tolerance)
    return CombinedLayer(
        low_rank_delta(reduced_up, reduced_down, shape),
        squared_error=_squared_product_norm(torch.cat([up, reduced_up], 1), torch.cat([down, -reduced_down], 0)),
        squared_change=_squared_product_norm(up, down),
    )


def _reduce_change(
    change: Tensor, bias: Tensor | None, rank: int | None, tolerance: float | None
) -> CombinedLayer | None:
    """Reduce a whole change to a rank or tolerance; None if it is zero."""
    delta = nearest_low_rank(change, rank, tolerance)
    if delta is None:
        if bias is None:
            return None
        return CombinedLayer(FullDelta.from_tensors({"diff": change, BIAS_DIFF: bias}))
    squared_error, squared_change = squared_norm(change - delta.weight_delta(change)), squared_norm(change)
    if bias is not None:
        delta = BiasedLowRankDelta.from_tensors(delta.state_dict() | {BIAS_DIFF: bias})
    return CombinedLayer(delta, squared_error, squared_change)


def _with_bias(tensors: dict[str, Tensor], key: str, bias: Tensor | None) -> dict[str, Tensor]:
    return tensors if bias is None else {**tensors, key: bias}


def _low_rank_factors(delta: Delta, strength: float) -> tuple[Tensor, Tensor] | None:
    """Return `up` at its scale and strength and `down`, both as matrices; None for deltas of other forms."""
    if type(delta) is not LowRankDelta or delta.tensor(LORA_MID) is not None:
        return None
    up, down = delta.required_tensor(LORA_UP).flatten(1), delta.required_tensor(LORA_DOWN).flatten(1)
    return up * delta.scale(up.shape[1]) * strength, down


def _squared_product_norm(up: Tensor, down: Tensor) -> float:
    """Return |up @ down|² = trace(upᵀ up down downᵀ) in float64, without multiplying it out."""
    up, down = up.double(), down.double()
    return max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0)


def _weight_shape(layer_name: str, scaled_deltas: ScaledDeltas, weight: Tensor | None) -> TensorShape:
    """Return the shape of the weight that all deltas change; a matrix fits a 1x1 convolution too."""
    if weight is not None:
        return tuple(weight.shape)
    shape = max((delta.weight_shape for delta, _ in scaled_deltas), key=len)
    if not all(delta.is_compatible(torch.empty(shape, device="meta")) for delta, _ in scaled_deltas):
        raise WrongBase(f"these LoRAs change {layer_name[:80]} of different sizes: combine those of one family")
    return shape


def _weight_for(layer_name: str, delta: Delta, weight: Tensor | None, shape: TensorShape) -> Tensor:
    """Return the weight that a delta changes; zeros of the same shape if the change does not depend on it."""
    if weight is not None:
        return weight.to(delta.tensors[0].device)
    is_plain_product = isinstance(delta, ProductDelta) and delta.tensor(DORA_SCALE) is None
    if is_plain_product or isinstance(delta, FullDelta | NormDelta):
        return torch.zeros(shape, device=delta.tensors[0].device)
    raise BadOverlay(
        f"the change that {delta.algorithm} makes in {layer_name[:80]} depends on the base's weights: give the base"
    )
