"""Tensors that stay on disk until they are asked for."""

from __future__ import annotations

import mmap
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import BinaryIO

import torch
from torch import Tensor


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of a file by name, each read at every asking and kept by nobody else."""

    @abstractmethod
    def meta_tensor(self, key: str) -> Tensor:
        """A tensor's shape and precision without its values, on the meta device."""

    def apply(self, key: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        """What use makes of a tensor as it lies in the file: something new, as what it is given goes away after it."""
        return function(self[key])


def meta_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is known of tensors before any is read: their shapes and precisions, on the meta device."""
    if isinstance(tensors, LazyTensors):
        return {key: tensors.meta_tensor(key) for key in tensors}
    return {key: torch.empty_like(tensor, device="meta") for key, tensor in tensors.items()}


def copy_bytes(data: mmap.mmap, begin: int, end: int) -> bytearray:
    """A part of a mapped file, whose pages are then let go: a file read once through is never held twice."""
    with memoryview(data) as view:
        copy = bytearray(view[begin:end])
    release_pages(data, begin, end)
    return copy


def apply_to(tensors: Mapping[str, Tensor], key: str, function: Callable[[Tensor], Tensor]) -> Tensor:
    """What use makes of one of some tensors, read without a copy where that is possible (see Lazy.used)."""
    return tensors.apply(key, function) if isinstance(tensors, LazyTensors) else function(tensors[key])


def map_file(file: BinaryIO) -> mmap.mmap:
    """A file mapped so that tensors can lie in it, which must be able to write: what they write, nobody else sees.

    Where the system has no room for that, as for files larger than all its memory, they cannot.
    """
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def byte_tensor(data: mmap.mmap, begin: int, end: int) -> Tensor:
    """The same as a tensor of bytes, at a place in memory as torch chooses it, where arithmetic is fastest."""
    tensor = torch.empty(end - begin, dtype=torch.uint8)
    with memoryview(data) as view, tensor.numpy().data as target:
        target[:] = view[begin:end]
    release_pages(data, begin, end)
    return tensor


def release_pages(data: mmap.mmap, begin: int, end: int) -> None:
    """Keep a part of a mapped file no longer in memory than others do; it is read again when it is asked for."""
    if hasattr(mmap, "MADV_DONTNEED") and end - begin >= mmap.PAGESIZE:
        start = begin - begin % mmap.PAGESIZE
        data.madvise(mmap.MADV_DONTNEED, start, min(end, len(data)) - start)
