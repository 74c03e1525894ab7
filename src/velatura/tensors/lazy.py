"""Tensors that stay on disk until they are accessed, and the mapped file that they are read from."""

from __future__ import annotations

import mmap
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import BinaryIO

import torch
from torch import Tensor

MAX_DIMENSION = 2**40  # values along a dimension, a stride or an offset: more than any disk holds
MAX_DIMENSIONS = 16  # of a tensor


class LazyTensors(Mapping[str, Tensor]):
    """Tensors of a file by name. Each access reads the tensor from the file; nothing is cached."""

    @abstractmethod
    def meta_tensor(self, key: str) -> Tensor:
        """Return a tensor's shape and precision without its values, on the meta device."""

    def apply(self, key: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return function(tensor), if possible without a copy of the tensor.

        The function must return a new tensor: the memory of its argument may be released afterwards.
        """
        return function(self[key])


def meta_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the shapes and precisions of tensors, on the meta device, without reading any values."""
    if isinstance(tensors, LazyTensors):
        return {key: tensors.meta_tensor(key) for key in tensors}
    return {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}


def apply_to(tensors: Mapping[str, Tensor], key: str, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return function(tensors[key]), read without a copy where that is possible: see LazyTensors.apply."""
    return tensors.apply(key, function) if isinstance(tensors, LazyTensors) else function(tensors[key])


def map_file(file: BinaryIO) -> mmap.mmap:
    """Map a file into memory, copy-on-write: torch needs writable memory, and nobody else sees the changes.

    If the system refuses that, as it does for files larger than all its memory, the map is read-only.
    """
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def copy_bytes(data: mmap.mmap, begin: int, end: int) -> bytearray:
    """Copy a part of a mapped file and release its pages, so that no part is in memory twice."""
    with memoryview(data) as view:
        copy = bytearray(view[begin:end])
    release_pages(data, begin, end)
    return copy


def byte_tensor(data: mmap.mmap, begin: int, end: int) -> Tensor:
    """Copy a part of a mapped file into a uint8 tensor, aligned by torch for fast arithmetic."""
    tensor = torch.empty(end - begin, dtype=torch.uint8)
    with memoryview(data) as view, tensor.numpy().data as target:
        target[:] = view[begin:end]
    release_pages(data, begin, end)
    return tensor


def release_pages(data: mmap.mmap, begin: int, end: int) -> None:
    """Tell the system that a part of a mapped file may leave memory; the next access reads it again."""
    if hasattr(mmap, "MADV_DONTNEED") and end - begin >= mmap.PAGESIZE:
        start = begin - begin % mmap.PAGESIZE
        data.madvise(mmap.MADV_DONTNEED, start, min(end, len(data)) - start)
