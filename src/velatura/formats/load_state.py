"""Load the tensors of a file into an overlay: strictly by name and shape, and only finite floating-point numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from velatura.errors import BadFile, quantity, warn
from velatura.overlays.overlay import Card, Overlay

AnyOverlay = TypeVar("AnyOverlay", bound=Overlay)

MAX_SHOWN_KEY_LENGTH = 80  # characters of a key in a message
CHEAP_LAYER_COUNT = 100  # so few layers cost nothing to build, and a missing tensor can then be named
MAX_PLAUSIBLE_WEIGHT = 1e4  # trained weights stay below a hundred
EDGE_OF_TYPE = 0.99  # of the largest number of a precision: values from there on were probably cut off


def load_tensors(
    overlay: AnyOverlay, tensors: Mapping[str, object], name: str, dtype: torch.dtype | None = None
) -> AnyOverlay:
    """Load tensors into an overlay that was built on the meta device.

    Args:
        overlay: Changed in place.
        tensors: What the file holds, by the overlay's own names of its tensors.
        name: Name of the file, for messages.
        dtype: Precision of the loaded tensors; the default is that of the file, of several the most exact.

    Returns:
        The same overlay, in eval mode.

    Raises:
        BadFile: A tensor is missing, left over, of another shape, or not finite floating-point numbers.
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
    dtype = dtype or _widest_dtype(dense_tensors)
    overlay.load_state_dict({key: tensor.to(dtype) for key, tensor in dense_tensors.items()}, assign=True)
    return overlay.eval()


def _widest_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return the precision that holds all tensors: a network computes in one."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    return reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def check_not_empty(name: str, card: Card, tensor_count: int) -> None:
    """Refuse a card that describes many layers in a file of few tensors, before the layers are built.

    Every layer has at least two tensors.

    Raises:
        BadFile: There are fewer tensors than layers.
    """
    widths, layers = card.structure.get("widths"), card.structure.get("layers")
    if not isinstance(widths, list) or not isinstance(layers, list):
        return
    if len(widths) * len(layers) > max(tensor_count, CHEAP_LAYER_COUNT):
        claim = f"{quantity(len(layers), 'layer')} for each of {quantity(len(widths), 'width')}"
        raise BadFile(
            f"{name} describes {claim} and holds {quantity(tensor_count, 'tensor')}: it is cut short or misdescribed"
        )


def check_tensor(name: str, key: str, tensor: object, shape: torch.Size) -> Tensor:
    """Return a dense copy of a tensor from a file, or refuse it.

    Args:
        name: Name of the file, for messages.
        key: Name of the tensor, for messages.
        tensor: What the file holds under that name.
        shape: The expected shape.

    Raises:
        BadFile: Not a dense tensor, another shape, not floating-point numbers, or values that are NaN, infinite or
            infinite in float32.
    """
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        raise BadFile(f"{name} has {key}, which is not a dense tensor but a {type(tensor).__name__}: do not trust it")
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
        if bool(dense.isfinite().all()):
            raise BadFile(f"{name} has {key} with values beyond float32: training spoilt it, so use an earlier copy")
        raise BadFile(f"{name} has {key} with values that are not finite: training spoilt it, so use an earlier copy")
    return dense


def is_finite(tensor: Tensor) -> bool:
    """Return True if no value is NaN or infinite, also in float32, in which overlays compute.

    A plain sum is ten times as fast as a check of all values, which is needed only where the sum is not finite.
    """
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.to(torch.float32).isfinite().all())


def warn_of_suspicious_weights(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Warn of weights that can be loaded but are probably wrong.

    These are mixed precisions, only zeros, very large values, and matrices of denormal numbers, which are too small
    for their precision.
    """
    largest = {key: largest_value(tensor) for key, tensor in tensors.items()}
    denormal_count = sum(_is_denormal(tensors[key], value) for key, value in largest.items())
    problems = {
        "mixes precisions": len({tensor.dtype for tensor in tensors.values()}) > 1,
        "holds only zeros, so it has no effect": not any(largest.values()),
        f"holds {quantity(denormal_count, 'tensor')} of denormal numbers, too small to have an effect": denormal_count
        > 0,
        **{problem: True for problem in [describe_large_values(tensors, largest)] if problem},
    }
    for problem, is_present in problems.items():
        if is_present:
            warn(f"{name} {problem}: check the pictures that it makes")


def warn_of_zero_weights(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Warn if some layers, but not all, have weights of zeros: what comes before them is lost."""
    weights = {key: tensor for key, tensor in tensors.items() if key.endswith("weight") and tensor.numel()}
    zeros = [key for key, tensor in weights.items() if not bool(tensor.any())]
    if 0 < len(zeros) < len(weights):
        warn(
            f"{name} has only zeros in {len(zeros)} of {len(weights)} weights ({min(zeros)[:MAX_SHOWN_KEY_LENGTH]}), "
            "as before training: check the pictures that it makes"
        )


def largest_value(tensor: Tensor) -> float:
    """Return the largest absolute value of a tensor, 0 if it is empty, NaN if one of its values is."""
    return float(torch.stack(tensor.aminmax()).abs().max()) if tensor.numel() else 0.0


def describe_large_values(tensors: Mapping[str, Tensor], largest: Mapping[str, float]) -> str:
    """Say which tensor has values that no training gives, or return "" if there is none.

    Args:
        tensors: Tensors by name.
        largest: Their largest absolute values.
    """
    key = max(largest, key=lambda key: largest[key], default="")
    if not key or largest[key] <= MAX_PLAUSIBLE_WEIGHT:
        return ""
    dtype = tensors[key].dtype
    is_at_edge = largest[key] >= EDGE_OF_TYPE * torch.finfo(dtype).max
    edge = f", the largest number of {str(dtype).removeprefix('torch.')}" if is_at_edge else ""
    return f"holds weights of up to {largest[key]:.4g}{edge} ({key[:MAX_SHOWN_KEY_LENGTH]})"


def _is_denormal(tensor: Tensor, largest: float) -> bool:
    """Return True for a matrix, or a tensor in float32, with no value that its precision holds with all its digits.

    Trained biases in float16 may be so small, and they need not be more exact.
    """
    has_small_biases = tensor.dtype == torch.float16 and tensor.ndim < 2
    return 0 < largest < torch.finfo(tensor.dtype).tiny and not has_small_biases
