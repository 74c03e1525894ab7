"""Tensors from their descriptions, within what the file has: no work before it is known to be small.

All that is wrong is a ValueError whose message goes on from "this file ...".
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import cast

import torch
from torch import Tensor

from velatura.tensors.pickle_globals import DTYPE_BYTES, PickledNumpyType, PickleGlobal, Storage, TensorDescription

MAX_DEPTH = 64
MAX_ITEMS = 2**16  # of a file: five times those of a checkpoint with its optimizer
MAX_VALUE_USES = 4  # so often may a file's values be used: weights that are tied are used twice

ReadStorage = Callable[[Storage], bytearray]


class Rebuilder:
    """Turns what a pickle describes into what it means; read gives a storage's bytes, most is the file's size."""

    def __init__(self, read_storage: ReadStorage, file_size: int) -> None:
        self._read_storage = read_storage
        self._bytes_left = MAX_VALUE_USES * file_size
        self._items_left = MAX_ITEMS
        self._storages: dict[str, Tensor] = {}
        self._tensors: dict[TensorDescription, Tensor] = {}

    def rebuild(self, description: object, depth: int = 0) -> object:
        """A copy of a tree of dicts, lists and tuples with tensors in it, in which nothing is endless or a name."""
        self._items_left -= 1
        if depth > MAX_DEPTH or self._items_left < 0:
            raise ValueError("holds lists in lists without end")
        if isinstance(description, dict):
            items = cast("dict[object, object]", description)
            return {key: self.rebuild(value, depth + 1) for key, value in items.items()}
        if isinstance(description, list):
            return [self.rebuild(item, depth + 1) for item in cast("list[object]", description)]
        if isinstance(description, tuple):
            return tuple(self.rebuild(item, depth + 1) for item in cast("tuple[object, ...]", description))
        if isinstance(description, TensorDescription):
            return self._tensor(description)
        if isinstance(description, PickleGlobal | PickledNumpyType | Storage):
            raise ValueError("holds a name or a type where a value belongs")
        return description

    def _tensor(self, description: TensorDescription) -> Tensor:
        if description not in self._tensors:
            self.refuse_impossible(description)
            self._tensors[description] = view_storage(description, self._values(description.storage))
        return self._tensors[description]

    def refuse_impossible(self, description: TensorDescription) -> None:
        """Refuse a tensor that reaches out of its storage or shows a value of it twice, and one copy too many."""
        if len(description.shape) != len(description.stride):
            raise ValueError("has a tensor with more sizes than strides, or fewer")
        count, stored = prod(description.shape), description.storage.count
        last = description.offset + sum(
            (size - 1) * stride for size, stride in zip(description.shape, description.stride, strict=True)
        )
        if count and (count > stored or last >= stored):
            raise ValueError(f"has a tensor of shape {description.shape} over a storage of {stored} values")
        self._bytes_left -= count * DTYPE_BYTES[description.storage.dtype]
        if self._bytes_left < 0:
            raise ValueError(f"uses its values more than {MAX_VALUE_USES} times over")

    def _values(self, storage: Storage) -> Tensor:
        if storage.key not in self._storages:
            self._storages[storage.key] = storage_values(storage, self._read_storage)
        return self._storages[storage.key]


def storage_values(storage: Storage, read_storage: ReadStorage) -> Tensor:
    """All values of a storage, in a row."""
    data, dtype = read_storage(storage), getattr(torch, storage.dtype)
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def view_storage(description: TensorDescription, values: Tensor) -> Tensor:
    """The tensor that shows the values of a storage as its description says."""
    if 0 in description.shape:
        return values.new_empty(description.shape)
    return values.as_strided(description.shape, description.stride, description.offset)
