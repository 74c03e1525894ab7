"""Weights of networks on pixels in the files of their training programs: find them, and load them strictly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from velatura.errors import BadFile
from velatura.tensors import Contents, StateDict, as_dict

# Where training programs put the weights, the averaged ones first, which BasicSR itself prefers
WRAPPERS = ("params_ema", "params", "state_dict")
PREFIXES = ("module.", "generator.", "netG.")  # of all names
MAX_KEY_LENGTH = 80  # in a message


def find_weights(contents: Contents) -> StateDict:
    """Return the tensors of a file by name: those in a wrapper that training programs use, else those at the top."""
    top = cast("dict[object, object]", dict(contents.tensors))  # of safetensors; a torch file has a payload instead
    tensors = top or as_dict(contents.payload) or {}
    wrapped = next((found for key in WRAPPERS if (found := as_dict(tensors.get(key)))), None)
    named = {
        name: value
        for name, value in (wrapped or tensors).items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    # CodeFormer has parts called so, beside others
    shared = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in named)), "")
    return cast("StateDict", {name.removeprefix(shared): value for name, value in named.items()})


def load_network(
    network: nn.Module,
    values: Mapping[str, Tensor],
    *,
    file: str,
    model: str,
    keys: Mapping[str, str] | None = None,
) -> None:
    """Load all tensors of a network in float32, and make it ready for use.

    Args:
        network: The network, which may be on the meta device; it is changed in place.
        values: Its tensors by their names in the network.
        file: The file's name, for messages.
        model: What the file holds, for messages.
        keys: Names in the file by those in the network, where they differ.

    Raises:
        BadFile: A tensor is missing, has no place, has another shape, or does not hold finite numbers.
    """
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if missing := shapes.keys() - values.keys():
        raise BadFile(f"{file} lacks {min(missing)}, which {model} needs: download it again")
    for name, tensor in values.items():
        _check_tensor(file, (keys or {}).get(name, name), tensor, shapes.get(name))
    network.load_state_dict({name: tensor.float() for name, tensor in values.items()}, assign=True)
    network.eval().requires_grad_(requires_grad=False)


def _check_tensor(file: str, key: str, tensor: Tensor, shape: torch.Size | None) -> None:
    """Refuse a tensor that has no place in the network, or that does not hold finite numbers of its shape."""
    shown = key[:MAX_KEY_LENGTH]
    if shape is None:
        raise BadFile(f"{file} holds {shown!r}, which has no place in a network of its kind: get another file")
    if tensor.shape != shape:
        raise BadFile(
            f"{shown} of {file} has the shape {tuple(tensor.shape)} instead of {tuple(shape)}: download it again"
        )
    if not tensor.is_floating_point() or not tensor.isfinite().all():
        raise BadFile(f"{shown} of {file} does not hold finite floating-point numbers: download it again")
