"""Tensors of a file into the overlay they were read for: strictly, and only what can be computed with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from velatura.errors import BadFile, VelaturaWarning
from velatura.overlays.overlay import Card, Overlay

AnyOverlay = TypeVar("AnyOverlay", bound=Overlay)

CHEAP_LAYER_COUNT = 100  # layers that cost nothing to build, so that what is missing can be named
MAX_PLAUSIBLE_WEIGHT = 1e6  # trained weights stay below a hundred


def load_tensors(
    overlay: AnyOverlay, tensors: Mapping[str, object], name: str, dtype: torch.dtype | None = None
) -> AnyOverlay:
    """Fill an overlay on the meta device with the tensors of the file of that name.

    Missing, left-over and misshapen tensors are refused, and whatever is no finite floating-point number.
    """
    expected = overlay.state_dict()
    if missing := expected.keys() - tensors.keys():
        raise BadFile(
            f"{name} lacks {min(missing)}, which {overlay.card.outline} needs: it is cut short or misdescribed"
        )
    if extra := tensors.keys() - expected.keys():
        raise BadFile(
            f"{name} holds {min(extra)[:80]!r}, which has no place in {overlay.card.outline}: it is misdescribed"
        )
    dense_tensors = {key: check_tensor(name, key, tensor, expected[key].shape) for key, tensor in tensors.items()}
    warn_of_suspicious_weights(name, dense_tensors)
    overlay.load_state_dict(
        {key: tensor.to(dtype or tensor.dtype) for key, tensor in dense_tensors.items()}, assign=True
    )
    return overlay.eval()


def check_not_empty(name: str, card: Card, tensor_count: int) -> None:
    """Refuse a card of many layers over few tensors, before they are built: each layer has two at least."""
    widths, layers = (card.structure.get(key) for key in ("widths", "layers"))
    if (
        isinstance(widths, list)
        and isinstance(layers, list)
        and len(widths) * len(layers) > max(tensor_count, CHEAP_LAYER_COUNT)
    ):
        claim = f"{len(layers)} layers for each of {len(widths)} widths"
        raise BadFile(f"{name} describes {claim} and holds {tensor_count} tensors: it is cut short or misdescribed")


def check_tensor(name: str, key: str, tensor: object, shape: torch.Size) -> Tensor:
    """A dense copy of a tensor that is what it should be."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        raise BadFile(f"{name} has {key} that is no plain tensor but a {type(tensor).__name__}: do not trust it")
    if tensor.shape != shape:
        raise BadFile(
            f"{name} has {key} of shape {tuple(tensor.shape)}, not {tuple(shape)}: it is damaged or misdescribed"
        )
    if not tensor.is_floating_point():
        raise BadFile(f"{name} has {key} in {tensor.dtype}: weights must be floating-point numbers, so export it again")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BadFile(f"{name} has {key} with more values than it stores: do not trust it")
    dense = tensor.detach().clone(memory_format=torch.contiguous_format)
    if not is_finite(dense):
        raise BadFile(
            f"{name} has {key} with values that are not finite: it was spoilt in training, so use an earlier copy"
        )
    return dense


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite: a plain sum is ten times as fast, and only an infinite one needs a second look."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())


def warn_of_suspicious_weights(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Warn of what loads but is hardly meant."""
    largest = max(
        (float(torch.stack(tensor.aminmax()).abs().max()) for tensor in tensors.values() if tensor.numel()), default=0
    )
    problems = {
        "mixes precisions": len({tensor.dtype for tensor in tensors.values()}) > 1,
        "holds nothing but zeros, so it does nothing": largest == 0,
        f"holds weights above {MAX_PLAUSIBLE_WEIGHT:.0e}": largest > MAX_PLAUSIBLE_WEIGHT,
    }
    for problem, is_present in problems.items():
        if is_present:
            warnings.warn(f"{name} {problem}: look at what it makes", VelaturaWarning, stacklevel=2)
