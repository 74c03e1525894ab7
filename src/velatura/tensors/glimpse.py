"""What a tensor file holds, without its values: only its list of tensors is read, whatever its size."""

from __future__ import annotations

from dataclasses import replace
from mmap import mmap
from pathlib import Path

import torch
from torch import Tensor

from velatura.tensors import Contents, StrPath, meta_tensors, open_mapped, read_outline
from velatura.tensors.named import Storage
from velatura.tensors.rebuilt import Rebuilder


def open_meta(path: StrPath) -> Contents:
    """What open_tensors opens, with the same refusals but those of values, and all tensors on the meta device."""
    return open_mapped(path, _read_meta)


class _MetaRebuilder(Rebuilder):
    """A rebuilder of tensors without values."""

    def __init__(self, file_size: int) -> None:
        super().__init__(lambda _: bytearray(), file_size)

    def _values(self, storage: Storage) -> Tensor:
        return torch.empty(storage.count, dtype=getattr(torch, storage.dtype), device="meta")


def _read_meta(path: Path, data: mmap) -> Contents:
    outline = read_outline(path, data)
    if isinstance(outline, Contents):
        return replace(outline, tensors=meta_tensors(outline.tensors))
    contents, file = outline
    return replace(contents, payload=_MetaRebuilder(file.file_size).rebuild(file.description))
