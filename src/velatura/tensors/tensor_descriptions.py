"""Tensors as a torch file's pickle describes them, before any value is read.

Every fault is a ValueError whose message continues "FILE ...".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from velatura.tensors.lazy import MAX_DIMENSION


@dataclass(frozen=True)
class Storage:
    """A storage of a torch file: `count` values of a dtype under a key. The device in the pickle is ignored."""

    dtype: torch.dtype
    key: str
    count: int

    @property
    def byte_count(self) -> int:
        """Return the bytes of all its values."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class TensorDescription:
    """A tensor as a pickle describes it: a view of a storage. Offset and strides count values, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def require_size(value: object) -> int:
    """Return a size or an offset from a pickle; refuse everything but a plausible whole number."""
    if type(value) is not int or not 0 <= value <= MAX_DIMENSION:
        raise ValueError(f"has a tensor with a size or an offset of {str(value)[:40]}")
    return value


def swap_byte_order(data: bytearray, dtype: torch.dtype) -> bytearray:
    """Reverse the bytes of every number: from big-endian to little-endian order, or back."""
    width = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
    if width == 1:
        return data
    swapped = bytearray(len(data))
    for index in range(width):
        swapped[index::width] = data[width - 1 - index :: width]
    return swapped
