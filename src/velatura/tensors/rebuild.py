"""Tensors from their descriptions in a pickle. Sizes are checked against the file before any memory is allocated.

Every fault is a ValueError whose message continues "FILE ...".
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import cast

import torch
from torch import Tensor

from velatura.tensors.inert_names import InertName
from velatura.tensors.lazy import MAX_DIMENSIONS
from velatura.tensors.pickle_globals import PickleGlobal
from velatura.tensors.pickle_numpy import InlineStorage, PickledNumpyArray, PickledNumpyType
from velatura.tensors.tensor_descriptions import Storage, TensorDescription, swap_byte_order
from velatura.tensors.tensor_names import check_tensor_name

MAX_DEPTH = 64
MAX_ITEMS = 2**16  # of a file: five times as many as in a checkpoint with its optimizer
MAX_VALUE_USES = 4  # how often tensors may share the file's values: tied weights use them twice

ReadStorage = Callable[[Storage], bytearray]


class TensorChecker:
    """Refuses descriptions of tensors that the file cannot hold, and too many views of the same values.

    Args:
        file_size: Bytes of the file.
    """

    def __init__(self, file_size: int) -> None:
        self._bytes_left = MAX_VALUE_USES * file_size

    def check(self, description: TensorDescription) -> None:
        """Raise ValueError for a tensor that exceeds its storage or repeats values of it, or exceeds the budget."""
        if len(description.shape) > MAX_DIMENSIONS:
            raise ValueError(f"has a tensor of {len(description.shape):,} dimensions")
        if len(description.shape) != len(description.stride):
            raise ValueError("has a tensor with different numbers of sizes and strides")
        count, stored = prod(description.shape), description.storage.count
        last = description.offset + sum(
            (size - 1) * stride for size, stride in zip(description.shape, description.stride, strict=True)
        )
        if count and (count > stored or last >= stored):
            raise ValueError(f"has a tensor of shape {description.shape} in a storage of {stored} values")
        self._bytes_left -= count * description.storage.dtype.itemsize
        if self._bytes_left < 0:
            raise ValueError(f"uses its values more than {MAX_VALUE_USES} times")


class Rebuilder:
    """Turns the objects that a pickle describes into plain Python values and tensors.

    Args:
        read_storage: Returns the bytes of a storage.
        file_size: Bytes of the file, which limits the memory of all tensors.
    """

    def __init__(self, read_storage: ReadStorage, file_size: int) -> None:
        self._read_storage = read_storage
        self._checker = TensorChecker(file_size)
        self._items_left = MAX_ITEMS
        self._storages: dict[str, Tensor] = {}
        self._tensors: dict[TensorDescription, Tensor] = {}

    def rebuild(self, description: object, depth: int = 0) -> object:
        """Return a copy of nested dicts, lists and tuples, with tensors in place of their descriptions.

        Raises:
            ValueError: for too deep or too large structures, and for names or types in place of values.
        """
        self._items_left -= 1
        if depth > MAX_DEPTH or self._items_left < 0:
            raise ValueError(f"has lists nested deeper than {MAX_DEPTH} levels, or more than {MAX_ITEMS:,} items")
        if isinstance(description, dict):
            items = cast("dict[object, object]", description)
            for key, value in items.items():
                if isinstance(key, str) and isinstance(value, TensorDescription):
                    check_tensor_name(key)
            return {key: self.rebuild(value, depth + 1) for key, value in items.items()}
        if isinstance(description, list):
            return [self.rebuild(item, depth + 1) for item in cast("list[object]", description)]
        if isinstance(description, tuple):
            return tuple(self.rebuild(item, depth + 1) for item in cast("tuple[object, ...]", description))
        return self._rebuild_value(description)

    def _rebuild_value(self, description: object) -> object:
        if isinstance(description, PickledNumpyArray):
            description = description.description  # None for texts and objects
        if isinstance(description, TensorDescription):
            return self._tensor(description)
        if isinstance(description, InertName | PickledNumpyType):
            return str(description)
        if isinstance(description, PickleGlobal | Storage):
            raise ValueError("has a name or a type in place of a value")
        return description

    def _tensor(self, description: TensorDescription) -> Tensor:
        if description not in self._tensors:
            self._checker.check(description)
            self._tensors[description] = view_storage(description, self._values(description.storage))
        return self._tensors[description]

    def _values(self, storage: Storage) -> Tensor:
        if storage.key not in self._storages:
            self._storages[storage.key] = storage_tensor(storage, self._read_storage)
        return self._storages[storage.key]


def storage_tensor(storage: Storage, read_storage: ReadStorage) -> Tensor:
    """Read a storage and return all its values as a tensor (count,)."""
    data = _inline_bytes(storage) if isinstance(storage, InlineStorage) else read_storage(storage)
    return torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)


def _inline_bytes(storage: InlineStorage) -> bytearray:
    data = bytearray(storage.data)
    return swap_byte_order(data, storage.dtype) if storage.is_big_endian else data


def view_storage(description: TensorDescription, values: Tensor) -> Tensor:
    """Return the view of a storage's values that a description asks for."""
    if 0 in description.shape:
        return values.new_empty(description.shape)
    return values.as_strided(description.shape, description.stride, description.offset)
