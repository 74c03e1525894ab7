"""Tensor sources: which tensor of a file becomes a tensor of a model, and how it is changed while it is loaded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from velatura.errors import BadFile, warn
from velatura.formats.load_state import MAX_SHOWN_KEY_LENGTH, describe_large_values, largest_value
from velatura.tensors import Contents, apply_to, meta_tensors

AnyModel = TypeVar("AnyModel", bound=nn.Module)

SMALLEST_WEIGHT = torch.finfo(torch.float32).tiny  # below are denormal numbers; those of float16 are trained at times


def identity(tensor: Tensor) -> Tensor:
    """Return the tensor unchanged."""
    return tensor


@dataclass(frozen=True)
class TensorSource:
    """A tensor of a file that becomes a tensor of a model.

    Attributes:
        key: Name of the tensor in the file.
        transform: Slices, transposes or reshapes it into the model's layout.
    """

    key: str
    transform: Callable[[Tensor], Tensor] = identity


TensorSources = Mapping[str, TensorSource]  # by the name of the tensor in the model


@dataclass(frozen=True)
class Destination:
    """Precision and device of the tensors of a model that is opened."""

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"


def apply_sources(sources: TensorSources, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's tensors by the model's names.

    Args:
        sources: Tensors of the file by the model's names.
        tensors: Tensors of the file; on the meta device they give the shapes alone.
    """
    return {name: source.transform(tensors[source.key]) for name, source in sources.items()}


def row_chunk(count: int, index: int) -> Callable[[Tensor], Tensor]:
    """Return a transform that takes part `index` of `count` equal parts of a tensor's rows."""
    return partial(_take_row_chunk, count=count, index=index)


def transpose(tensor: Tensor) -> Tensor:
    """Transpose a matrix."""
    return tensor.T


def as_matrix(tensor: Tensor) -> Tensor:
    """Return the weights of a 1 x 1 convolution as a matrix (out, in), and a matrix unchanged."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def _take_row_chunk(tensor: Tensor, *, count: int, index: int) -> Tensor:
    return tensor.chunk(count)[index]


@torch.no_grad()
def load_model(model: AnyModel, sources: TensorSources, contents: Contents, destination: Destination) -> AnyModel:
    """Load tensors of a file into a model on the meta device, one after the other to save memory.

    Args:
        model: Changed in place.
        sources: Tensors of the file by the model's names.
        contents: The file.
        destination: Precision and device of the loaded tensors.

    Returns:
        The same model.

    Raises:
        BadFile: A tensor is missing, left over, of another shape, or not finite floating-point numbers.
    """
    _check_shapes(model.state_dict(), apply_sources(sources, meta_tensors(contents.tensors)), contents.path.name)
    largest: dict[str, float] = {}
    tensors: dict[str, Tensor] = {}
    for key, source in sources.items():
        tensors[key] = _load_tensor(source, contents, destination)
        value = largest_value(tensors[key])
        largest[source.key] = max(value, largest.get(source.key, 0.0))  # a tensor may be split into several
        if not math.isfinite(value):
            kind = str(destination.dtype).removeprefix("torch.")
            raise BadFile(
                f"{contents.path.name} has {source.key} with values that are not finite in {kind}: use another copy"
            )
    _warn_of_odd_values(contents, type(model).__name__, largest)
    model.load_state_dict(tensors, assign=True)
    _set_position_ids(model)
    return model


def _check_shapes(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], name: str) -> None:
    if missing := expected.keys() - actual.keys():
        raise BadFile(f"{name} lacks {min(missing)}: download it again")
    if extra := actual.keys() - expected.keys():
        raise BadFile(f"{name} holds {min(extra)[:80]!r}, which its model does not have: download it again")
    for key, tensor in actual.items():
        if tensor.shape != expected[key].shape:
            mismatch = f"{tuple(tensor.shape)}, not {tuple(expected[key].shape)}"
            raise BadFile(
                f"{name} has {key} of shape {mismatch}: it is damaged, or its configuration is another model's"
            )
        if not tensor.is_floating_point():
            raise BadFile(f"{name} has {key} in {tensor.dtype}: weights must be floating-point numbers")


def _load_tensor(source: TensorSource, contents: Contents, destination: Destination) -> Tensor:
    """Return a tensor of the file in the precision and layout of the destination."""
    return apply_to(contents.tensors, source.key, lambda stored: _copy_to(source.transform(stored), destination))


def _warn_of_odd_values(contents: Contents, part: str, largest: Mapping[str, float]) -> None:
    """Warn of a part of a base with weights that are zeros, denormal, or larger than training gives.

    Args:
        contents: The file.
        part: Class of the model, for messages.
        largest: The largest absolute value of every tensor, by its name in the file.
    """
    zeros = [key for key, value in largest.items() if key.endswith("weight") and not value]
    if not any(largest.values()):
        warn(f"{contents.path.name} holds only zeros for its {part}, so it paints nothing: download it again")
    elif zeros:
        shown = min(zeros)[:MAX_SHOWN_KEY_LENGTH]
        warn(
            f"{contents.path.name} has only zeros in {len(zeros)} of its weights for {part} ({shown}), which no "
            "training gives: check the pictures that it makes"
        )
    denormal = [key for key, value in largest.items() if key.endswith("weight") and 0 < value < SMALLEST_WEIGHT]
    if denormal:
        warn(
            f"{contents.path.name} has {len(denormal)} weights of denormal numbers for {part} "
            f"({min(denormal)[:MAX_SHOWN_KEY_LENGTH]}), too small to have an effect: check the pictures that it makes"
        )
    problem = describe_large_values(meta_tensors(contents.tensors), largest)
    if problem:
        warn(f"{contents.path.name} {problem}: check the pictures that it makes")


def _copy_to(tensor: Tensor, destination: Destination) -> Tensor:
    """Return a copy with memory of its own, convolutions with the channels last (see Base.to).

    Torch aligns new memory. In the memory of a file kernels may add numbers in another order and round differently.
    """
    if tensor.ndim != 4:
        return tensor.to(destination.device, destination.dtype, copy=True, memory_format=torch.contiguous_format)
    channels, pixels = tensor.shape[1], tensor.shape[2:].numel()
    if min(channels, pixels) == 1:  # such a permutation would not copy
        copy = tensor.to(destination.device, destination.dtype, copy=True, memory_format=torch.channels_last)
        return copy.contiguous(memory_format=torch.channels_last)
    # six times as fast as torch's own conversion to channels_last, which copies number by number
    flat = tensor.to(destination.device, destination.dtype).flatten(2)  # (out, in, height * width)
    channels_last = flat.transpose(1, 2).contiguous()  # (out, height * width, in)
    return channels_last.view(len(tensor), *tensor.shape[2:], channels).permute(0, 3, 1, 2)


def _set_position_ids(model: nn.Module) -> None:
    """Number the positions of a text encoder: a buffer that files do not hold."""
    for module in model.modules():
        if isinstance(module.__dict__.get("_buffers", {}).get("position_ids"), Tensor):
            buffer = module.get_buffer("position_ids")
            if buffer.is_meta:
                device = next(model.parameters()).device
                module.register_buffer("position_ids", torch.arange(buffer.shape[-1], device=device)[None], False)
