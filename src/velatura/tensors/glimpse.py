"""What a tensor file holds, without its values: only its list of tensors is read, whatever its size."""

from __future__ import annotations

from dataclasses import replace
from mmap import mmap
from pathlib import Path

import torch
from torch import Tensor

from velatura.tensors import Contents, StrPath, opened, outlined, sketches
from velatura.tensors.named import Storage
from velatura.tensors.rebuilt import Rebuilder


def glimpse(path: StrPath) -> Contents:
    """What open_tensors opens, with the same refusals but those of values, and all tensors on the meta device."""
    return opened(path, _glimpsed)


class _Outlines(Rebuilder):
    """A rebuilder of tensors without values."""

    def __init__(self, most: int) -> None:
        super().__init__(lambda _: bytearray(), most)

    def _values(self, storage: Storage) -> Tensor:
        return torch.empty(storage.count, dtype=getattr(torch, storage.dtype), device="meta")


def _glimpsed(path: Path, data: mmap) -> Contents:
    found = outlined(path, data)
    if isinstance(found, Contents):
        return replace(found, tensors=sketches(found.tensors))
    contents, file = found
    return replace(contents, payload=_Outlines(file.size).rebuilt(file.described))
