"""The tensors of a LoRA's file, in the container of whatever program, under one set of keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from velatura.tensors import Contents, as_dict

WRAPS = ("state_dict", "lora", "plugin", "model", "module")  # what programs put a file's tensors into
DEEPEST = 4


def state_of(contents: Contents) -> Mapping[str, Tensor]:
    """The tensors by their keys, of a torch file those at its top and in the dicts that programs put them into."""
    if contents.container == "safetensors":
        return contents.tensors
    return _within(contents.payload, DEEPEST)


def _within(payload: object, depth: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, each in (as_dict(payload) or {}).items():
        if isinstance(each, Tensor) and isinstance(key, str):
            found[key] = each
        elif key in WRAPS and depth:
            found |= _within(each, depth - 1)
    return found
