"""Tensors from their descriptions, within what the file has: no work before it is known to be small.

All that is wrong is a ValueError whose message goes on from "this file ...".
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import cast

import torch
from torch import Tensor

from velatura.tensors.named import WIDTHS, Name, NumpyType, Sketch, Storage

DEEPEST = 64
MOST_ITEMS = 2**16  # of a file: five times those of a checkpoint with its optimizer
MOST_TIMES = 4  # so often may a file's values be used: weights that are tied are used twice

Read = Callable[[Storage], bytearray]


class Rebuilder:
    """Turns what a pickle describes into what it means; read gives a storage's bytes, most is the file's size."""

    def __init__(self, read: Read, most: int) -> None:
        self._read = read
        self._bytes_left = MOST_TIMES * most
        self._items_left = MOST_ITEMS
        self._storages: dict[str, Tensor] = {}
        self._tensors: dict[Sketch, Tensor] = {}

    def rebuilt(self, described: object, depth: int = 0) -> object:
        """A copy of a tree of dicts, lists and tuples with tensors in it, in which nothing is endless or a name."""
        self._items_left -= 1
        if depth > DEEPEST or self._items_left < 0:
            raise ValueError("holds lists in lists without end")
        if isinstance(described, dict):
            items = cast("dict[object, object]", described)
            return {key: self.rebuilt(each, depth + 1) for key, each in items.items()}
        if isinstance(described, list):
            return [self.rebuilt(each, depth + 1) for each in cast("list[object]", described)]
        if isinstance(described, tuple):
            return tuple(self.rebuilt(each, depth + 1) for each in cast("tuple[object, ...]", described))
        if isinstance(described, Sketch):
            return self._tensor(described)
        if isinstance(described, Name | NumpyType | Storage):
            raise ValueError("holds a name or a type where a value belongs")
        return described

    def _tensor(self, sketch: Sketch) -> Tensor:
        if sketch not in self._tensors:
            self.refuse_impossible(sketch)
            self._tensors[sketch] = shown(sketch, self._values(sketch.storage))
        return self._tensors[sketch]

    def refuse_impossible(self, sketch: Sketch) -> None:
        """Refuse a tensor that reaches out of its storage or shows a value of it twice, and one copy too many."""
        if len(sketch.shape) != len(sketch.stride):
            raise ValueError("has a tensor with more sizes than strides, or fewer")
        count, stored = prod(sketch.shape), sketch.storage.count
        last = sketch.offset + sum((size - 1) * step for size, step in zip(sketch.shape, sketch.stride, strict=True))
        if count and (count > stored or last >= stored):
            raise ValueError(f"has a tensor of shape {sketch.shape} over a storage of {stored} values")
        self._bytes_left -= count * WIDTHS[sketch.storage.dtype]
        if self._bytes_left < 0:
            raise ValueError(f"uses its values more than {MOST_TIMES} times over")

    def _values(self, storage: Storage) -> Tensor:
        if storage.key not in self._storages:
            self._storages[storage.key] = values_of(storage, self._read)
        return self._storages[storage.key]


def values_of(storage: Storage, read: Read) -> Tensor:
    """All values of a storage, in a row."""
    data, dtype = read(storage), getattr(torch, storage.dtype)
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def shown(sketch: Sketch, values: Tensor) -> Tensor:
    """The tensor that shows the values of a storage as its description says."""
    if 0 in sketch.shape:
        return values.new_empty(sketch.shape)
    return values.as_strided(sketch.shape, sketch.stride, sketch.offset)
