"""Where a model's tensors come from: which tensor of a file each is, and what is done to it on the way in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from velatura.errors import BadFile
from velatura.tensors import Contents, sketches, used

Model = TypeVar("Model", bound=nn.Module)


def unchanged(tensor: Tensor) -> Tensor:
    """The tensor as it is in the file."""
    return tensor


@dataclass(frozen=True)
class Source:
    """A tensor of a file, by its key there, and how it is cut, turned or reshaped."""

    key: str
    change: Callable[[Tensor], Tensor] = unchanged


Sources = Mapping[str, Source]  # by the name of the tensor in the model


@dataclass(frozen=True)
class Destination:
    """In which precision tensors are to be, and where."""

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"


def shapes(sources: Sources, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a model is to have, given what is known of those of the file before they are read."""
    return {name: source.change(held[source.key]) for name, source in sources.items()}


def part(count: int, place: int) -> Callable[[Tensor], Tensor]:
    """One of so many equal parts of a tensor, by rows."""
    return partial(_part, count=count, place=place)


def turned(tensor: Tensor) -> Tensor:
    """A matrix with rows for columns."""
    return tensor.T


def as_product(tensor: Tensor) -> Tensor:
    """The matrix of a 1 x 1 convolution, or the matrix that it is already."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def _part(tensor: Tensor, *, count: int, place: int) -> Tensor:
    return tensor.chunk(count)[place]


@torch.no_grad()
def fill(model: Model, sources: Sources, contents: Contents, to: Destination) -> Model:
    """Fill a model on the meta device from a file, one tensor after the other.

    What is missing, left over, misshapen, no floating-point number or not finite is refused.
    """
    _refuse_misfits(model.state_dict(), shapes(sources, sketches(contents.tensors)), contents.path.name)
    found = {key: _taken(source, contents, to) for key, source in sources.items()}
    model.load_state_dict(found, assign=True)
    _number_places(model)
    return model


def _refuse_misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    if missing := expected.keys() - found.keys():
        raise BadFile(f"{name} lacks {min(missing)}: download it again")
    if extra := found.keys() - expected.keys():
        raise BadFile(f"{name} holds {min(extra)[:80]!r}, which its model has no place for: download it again")
    for key, each in found.items():
        if each.shape != expected[key].shape:
            fits = f"{tuple(each.shape)}, not {tuple(expected[key].shape)}"
            raise BadFile(f"{name} has {key} of shape {fits}: it is damaged, or described by another model's settings")
        if not each.is_floating_point():
            raise BadFile(f"{name} has {key} in {each.dtype}: weights must be floating-point numbers")


def _taken(source: Source, contents: Contents, to: Destination) -> Tensor:
    """A tensor in the wanted precision, alone in its memory, convolutions with the channels last (see Base.to)."""
    taken = used(contents.tensors, source.key, lambda there: _placed(source.change(there), to))
    if not _is_finite(taken):
        kind = str(to.dtype).removeprefix("torch.")
        raise BadFile(
            f"{contents.path.name} has {source.key} with values that are not finite in {kind}: use another copy"
        )
    return taken


def _placed(tensor: Tensor, to: Destination) -> Tensor:
    """A copy with memory of its own, which torch aligns: elsewhere sums come out in another order of rounding."""
    if tensor.ndim != 4:
        return tensor.to(to.device, to.dtype, copy=True, memory_format=torch.contiguous_format)
    channels, places = tensor.shape[1], tensor.shape[2:].numel()
    if min(channels, places) == 1:  # turning it would be no copy
        placed = tensor.to(to.device, to.dtype, copy=True, memory_format=torch.channels_last)
        return placed.contiguous(memory_format=torch.channels_last)
    # six times as fast as torch's own way to channels_last, which copies number by number
    turned = tensor.to(to.device, to.dtype).flatten(2).transpose(1, 2).contiguous()  # (out, places, in)
    return turned.view(len(tensor), *tensor.shape[2:], channels).permute(0, 3, 1, 2)


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite: a plain sum is ten times as fast, and only an infinite one needs a second look."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _number_places(model: nn.Module) -> None:
    """Count the places of a text tower, which are no weights and so not in any file."""
    for module in model.modules():
        if isinstance(module.__dict__.get("_buffers", {}).get("position_ids"), Tensor):
            buffer = module.get_buffer("position_ids")
            if buffer.is_meta:
                device = next(model.parameters()).device
                module.register_buffer("position_ids", torch.arange(buffer.shape[-1], device=device)[None], False)
