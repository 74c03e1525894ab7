"""Tensors on disk: open any tensor file without running it, write so that nothing is ever half written."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from mmap import mmap
from os import PathLike
from pathlib import Path
from typing import Literal, cast

import torch
from PIL.Image import Image
from torch import Tensor

from velatura.errors import BadFile, VelaturaWarning
from velatura.files import atomic_write, open_for_reading
from velatura.tensors import pictures, safetensors_files, torch_files
from velatura.tensors.lazy import LazyTensors, apply_to, map_file, meta_tensors
from velatura.tensors.pickle_globals import Storage
from velatura.tensors.rebuild import Rebuilder
from velatura.tensors.zip_archive import ZipArchive

__all__ = [
    "DAMAGED_FILE_ERRORS",
    "Contents",
    "LazyTensors",
    "StateDict",
    "StrPath",
    "apply_to",
    "as_dict",
    "as_list",
    "meta_tensors",
    "open_mapped",
    "open_state_dict",
    "open_tensors",
    "read_outline",
    "write_picture",
    "write_safetensors",
    "write_torch",
]

StrPath = str | PathLike[str]
StateDict = Mapping[str, Tensor]  # tensors by their names in a model or a file

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"

# what libraries raise over a damaged file; what they have read is harmless by then
DAMAGED_FILE_ERRORS = (
    *(pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(EOFError, AssertionError, MemoryError, ImportError, struct.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Contents:
    """What a tensor file holds.

    tensors and metadata are a safetensors file's, each tensor read at every asking (see Lazy); payload is whatever
    object a torch file holds: dicts, lists, tuples, numbers, texts and tensors. members are those of a torch zip, below
    its root, none of torch's old form; names what its pickle speaks of, such as torch.FloatStorage.
    """

    path: Path
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    payload: object = None
    container: Literal["safetensors", "zip", "legacy", "picture"] = "safetensors"
    members: frozenset[str] = frozenset()
    pickle_globals: frozenset[str] = frozenset()


def open_tensors(path: StrPath) -> Contents:
    """Open a tensor file by its content, whatever it is called, without running anything in it.

    Where a file has something that torch or safetensors would not have written, it is refused, however harmless.
    """
    return open_mapped(path, _read_payload)


def open_state_dict(path: StrPath) -> Contents:
    """Open a file of a whole model's tensors: those of a torch file too are read at every asking, and stand in tensors.

    They are those of its state_dict if it has one, or else of its top dict; payload is empty.
    """
    return open_mapped(path, _read_state_dict)


def as_dict(value: object) -> dict[object, object] | None:
    """A dict that came out of a torch file, or None for anything else."""
    return cast("dict[object, object]", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[object] | None:
    """A list or tuple that came out of a torch file, or None for anything else."""
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else None


def write_safetensors(
    path: StrPath,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Write tensors and metadata as safetensors, at once or not at all, the same ones in the same bytes.

    dtype: the precision of floating-point numbers in the file, if it is not to be their own.
    """
    with atomic_write(path) as temporary:
        safetensors_files.write(temporary, tensors, metadata or {}, dtype)


def write_torch(path: StrPath, payload: object) -> None:
    """Write an object of tensors as torch does, in the container that every version since 1.6 and A1111 read."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    with zipfile.ZipFile(buffer) as modern, atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as classic:
        for name in modern.namelist():
            _, _, member = name.partition("/")
            # A1111 before 1.10 refuses files with any other member
            if member in {"data.pkl", "version"} or member.removeprefix("data/").isdigit():
                classic.writestr(zipfile.ZipInfo(f"archive/{member}"), modern.read(name))  # with no time, as torch does


def write_picture(path: StrPath, picture: Image, payload: Mapping[str, object]) -> None:
    """Write a PNG of a picture with a dict of tensors in it, as the webui reads embeddings."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(pictures.write(picture, payload))


def open_mapped(path: StrPath, read: Callable[[Path, mmap], Contents]) -> Contents:
    """Map a file and read it, or say in one line why it cannot be read."""
    path = Path(path)
    with open_for_reading(path) as file:
        data = map_file(file) if path.stat().st_size else None
    if data is None:
        raise BadFile(f"{path.name} is an empty file, neither safetensors nor torch: download or export it again")
    try:
        return read(path, data)
    except DAMAGED_FILE_ERRORS as error:
        raise BadFile(f"{path.name} {_reason(error)}: do not trust it, download or export it again") from None


def _read_payload(path: Path, data: mmap) -> Contents:
    outline = read_outline(path, data)
    return outline if isinstance(outline, Contents) else replace(outline[0], payload=outline[1].payload())


def _read_state_dict(path: Path, data: mmap) -> Contents:
    outline = read_outline(path, data)
    return (
        outline if isinstance(outline, Contents) else replace(outline[0], tensors=torch_files.LazyStateDict(outline[1]))
    )


def read_outline(path: Path, data: mmap) -> Contents | tuple[Contents, torch_files.TorchFile]:
    """The contents of a safetensors file, or what can be told of a torch file before its tensors, and that file."""
    if data[:4] == ZIP_MAGIC:
        archive = ZipArchive(data)
        if not archive.has_checksums:
            message = (
                f"{path.name} has no checksums, so damage would not be noticed: compare it with where it came from"
            )
            warnings.warn(message, VelaturaWarning, stacklevel=5)
        torch_file = torch_files.read_zip(archive, len(data))
        return Contents(
            path, container="zip", members=archive.names, pickle_globals=torch_file.pickle_globals
        ), torch_file
    if data[8:9] == b"{":
        tensors = safetensors_files.LazySafetensors(data)
        return Contents(path, tensors, tensors.metadata)
    if kind := pictures.unsupported_format(data[:12]):
        raise BadFile(f"{path.name} is a picture in {kind}, which cannot be read here: save the same pixels as a PNG")
    if pictures.is_picture(data[:12]):
        return Contents(path, payload=pictures.read(data[:]), container="picture")
    if data[:1] == PICKLE_MAGIC:
        torch_file = torch_files.read_legacy(data)
        return Contents(path, container="legacy", pickle_globals=torch_file.pickle_globals), torch_file
    raise ValueError(f"starts with {data[:8]!r}, so it is neither safetensors nor torch")


def _reason(error: BaseException) -> str:
    """What is wrong, on one line: our own readers' words, or else a library's."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    message = "".join(filter(str.isprintable, lines[0]))[:200]
    return message if type(error) is ValueError else f"cannot be read ({message})"


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
