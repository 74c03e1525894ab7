"""Where a model's tensors come from: which tensor of a file each is, and what is done to it on the way in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from velatura.errors import BadFile
from velatura.tensors import Contents, apply_to, meta_tensors

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def identity(tensor: Tensor) -> Tensor:
    """The tensor as it is in the file."""
    return tensor


@dataclass(frozen=True)
class TensorSource:
    """A tensor of a file, by its key there, and how it is cut, turned or reshaped."""

    key: str
    transform: Callable[[Tensor], Tensor] = identity


TensorSources = Mapping[str, TensorSource]  # by the name of the tensor in the model


@dataclass(frozen=True)
class Destination:
    """In which precision tensors are to be, and where."""

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"


def apply_sources(sources: TensorSources, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a model is to have, given what is known of those of the file before they are read."""
    return {name: source.transform(tensors[source.key]) for name, source in sources.items()}


def row_chunk(count: int, index: int) -> Callable[[Tensor], Tensor]:
    """One of so many equal parts of a tensor, by rows."""
    return partial(_take_row_chunk, count=count, index=index)


def transpose(tensor: Tensor) -> Tensor:
    """A matrix with rows for columns."""
    return tensor.T


def as_matrix(tensor: Tensor) -> Tensor:
    """The matrix of a 1 x 1 convolution, or the matrix that it is already."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def _take_row_chunk(tensor: Tensor, *, count: int, index: int) -> Tensor:
    return tensor.chunk(count)[index]


@torch.no_grad()
def load_model(model: AnyModel, sources: TensorSources, contents: Contents, destination: Destination) -> AnyModel:
    """Fill a model on the meta device from a file, one tensor after the other.

    What is missing, left over, misshapen, no floating-point number or not finite is refused.
    """
    _check_shapes(model.state_dict(), apply_sources(sources, meta_tensors(contents.tensors)), contents.path.name)
    tensors = {key: _load_tensor(source, contents, destination) for key, source in sources.items()}
    model.load_state_dict(tensors, assign=True)
    _set_position_ids(model)
    return model


def _check_shapes(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], name: str) -> None:
    if missing := expected.keys() - actual.keys():
        raise BadFile(f"{name} lacks {min(missing)}: download it again")
    if extra := actual.keys() - expected.keys():
        raise BadFile(f"{name} holds {min(extra)[:80]!r}, which its model has no place for: download it again")
    for key, tensor in actual.items():
        if tensor.shape != expected[key].shape:
            mismatch = f"{tuple(tensor.shape)}, not {tuple(expected[key].shape)}"
            raise BadFile(
                f"{name} has {key} of shape {mismatch}: it is damaged, or described by another model's settings"
            )
        if not tensor.is_floating_point():
            raise BadFile(f"{name} has {key} in {tensor.dtype}: weights must be floating-point numbers")


def _load_tensor(source: TensorSource, contents: Contents, destination: Destination) -> Tensor:
    """A tensor in the wanted precision, alone in its memory, convolutions with the channels last (see Base.to)."""
    tensor = apply_to(contents.tensors, source.key, lambda stored: _copy_to(source.transform(stored), destination))
    if not _is_finite(tensor):
        kind = str(destination.dtype).removeprefix("torch.")
        raise BadFile(
            f"{contents.path.name} has {source.key} with values that are not finite in {kind}: use another copy"
        )
    return tensor


def _copy_to(tensor: Tensor, destination: Destination) -> Tensor:
    """A copy with memory of its own, which torch aligns: elsewhere sums come out in another order of rounding."""
    if tensor.ndim != 4:
        return tensor.to(destination.device, destination.dtype, copy=True, memory_format=torch.contiguous_format)
    channels, pixels = tensor.shape[1], tensor.shape[2:].numel()
    if min(channels, pixels) == 1:  # turning it would be no copy
        copy = tensor.to(destination.device, destination.dtype, copy=True, memory_format=torch.channels_last)
        return copy.contiguous(memory_format=torch.channels_last)
    # six times as fast as torch's own way to channels_last, which copies number by number
    channels_last = (
        tensor.to(destination.device, destination.dtype).flatten(2).transpose(1, 2).contiguous()
    )  # (out, places, in)
    return channels_last.view(len(tensor), *tensor.shape[2:], channels).permute(0, 3, 1, 2)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite: a plain sum is ten times as fast, and only an infinite one needs a second look."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _set_position_ids(model: nn.Module) -> None:
    """Count the places of a text tower, which are no weights and so not in any file."""
    for module in model.modules():
        if isinstance(module.__dict__.get("_buffers", {}).get("position_ids"), Tensor):
            buffer = module.get_buffer("position_ids")
            if buffer.is_meta:
                device = next(model.parameters()).device
                module.register_buffer("position_ids", torch.arange(buffer.shape[-1], device=device)[None], False)
