"""Tensors that stay on disk until they are asked for."""

from __future__ import annotations

import mmap
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """The tensors of a file by name, each read at every asking and kept by nobody else."""

    @abstractmethod
    def sketch(self, key: str) -> Tensor:
        """A tensor's shape and precision without its values, on the meta device."""


def sketches(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is known of tensors before any is read: their shapes and precisions, on the meta device."""
    if isinstance(tensors, Lazy):
        return {key: tensors.sketch(key) for key in tensors}
    return {key: torch.empty_like(each, device="meta") for key, each in tensors.items()}


def copied(data: mmap.mmap, begin: int, end: int) -> bytearray:
    """A part of a mapped file, whose pages are then let go: a file read once through is never held twice."""
    with memoryview(data) as view:
        found = bytearray(view[begin:end])
    _let_go(data, begin, end)
    return found


def numbers(data: mmap.mmap, begin: int, end: int) -> Tensor:
    """The same as a tensor of bytes, at a place in memory as torch chooses it, where arithmetic is fastest."""
    found = torch.empty(end - begin, dtype=torch.uint8)
    with memoryview(data) as view, found.numpy().data as target:
        target[:] = view[begin:end]
    _let_go(data, begin, end)
    return found


def _let_go(data: mmap.mmap, begin: int, end: int) -> None:
    if hasattr(mmap, "MADV_DONTNEED") and end - begin >= mmap.PAGESIZE:
        start = begin - begin % mmap.PAGESIZE
        data.madvise(mmap.MADV_DONTNEED, start, min(end, len(data)) - start)
