"""The tensors of a LoRA's file, in the container of whatever program, under one set of keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from velatura.tensors import Contents, as_dict

WRAPPER_KEYS = ("state_dict", "lora", "plugin", "model", "module")  # what programs put a file's tensors into
MAX_WRAPPER_DEPTH = 4


def find_state_dict(contents: Contents) -> Mapping[str, Tensor]:
    """The tensors by their keys, of a torch file those at its top and in the dicts that programs put them into."""
    if contents.container == "safetensors":
        return contents.tensors
    return _collect_tensors(contents.payload, MAX_WRAPPER_DEPTH)


def _collect_tensors(payload: object, depth: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, value in (as_dict(payload) or {}).items():
        if isinstance(value, Tensor) and isinstance(key, str):
            tensors[key] = value
        elif key in WRAPPER_KEYS and depth:
            tensors |= _collect_tensors(value, depth - 1)
    return tensors
