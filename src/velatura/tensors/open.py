"""Opening of tensor files: the format is detected by the content, and nothing in the file is executed."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from mmap import mmap
from os import PathLike
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from velatura.errors import BadFile, choose_number, quantity, warn
from velatura.files import open_for_reading
from velatura.tensors import pictures
from velatura.tensors.lazy import map_file, meta_tensors
from velatura.tensors.rebuild import Rebuilder
from velatura.tensors.safetensors_files import MAX_HEADER_BYTES, LazySafetensors
from velatura.tensors.tensor_descriptions import Storage
from velatura.tensors.torch_files import LazyStateDict, TorchFile, read_legacy, read_zip
from velatura.tensors.zip_archive import ZipArchive

StrPath = str | PathLike[str]
StateDict = Mapping[str, Tensor]  # tensors by their names in a model or a file

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"

HEAD_BYTES = 2**12  # enough to tell what a file is that is not a model
WEB_PAGE = "is a web page, such as a login or an error, not a model: download the file itself"
# What is often found in place of a model, by its first bytes in lower case
FOREIGN_STARTS = {
    b"version https://git-lfs.github.com/spec/": "is a git-lfs pointer, which only names the file: run git lfs pull "
    "where it was cloned, or download the file itself",
    **dict.fromkeys((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body"), WEB_PAGE),
    b"gguf": "is a GGUF file of quantised weights, which velatura does not read: get the .safetensors",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive: unpack it, and give the file inside",
    b"rar!\x1a\x07": "is a RAR archive: unpack it, and give the file inside",
    b"\x1f\x8b": "is a gzip archive: unpack it, and give the file inside",
    b"\xfd7zxz\x00": "is an xz archive: unpack it, and give the file inside",
}
JSON_MESSAGE = re.compile(r""""(?:error|message|detail)"\s*:\s*"((?:[^"\\]|\\.)*)""")
MAX_SHOWN_MEMBERS, MAX_SHOWN_NAME_LENGTH = 3, 60  # of a zip, and characters of their names
MAX_SHOWN_MESSAGE = 200  # characters of a server's message

TORCH_MEMBER = b"/data.pkl"  # the first in a torch file
PACKED_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".png", ".jpg", ".jpeg", ".webp", ".txt")

# Errors that libraries raise for a damaged file. The data they have parsed by then is harmless.
DAMAGED_FILE_ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    AssertionError,
    MemoryError,
    ImportError,
)


@dataclass(frozen=True)
class Contents:
    """Contents of a tensor file.

    Attributes:
        path: Path of the file.
        tensors: Tensors by name of a safetensors file or a state dict. Each access reads the file, see LazyTensors.
        metadata: Metadata of a safetensors file.
        payload: Object of a torch file or a picture: dicts, lists, tuples, numbers, texts and tensors.
        container: Format of the file.
        members: Names of a torch zip's members, below its root folder.
        pickle_globals: Names that a torch file's pickles refer to, such as "torch.FloatStorage".
    """

    path: Path
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    payload: object = None
    container: Literal["safetensors", "zip", "legacy", "picture"] = "safetensors"
    members: frozenset[str] = frozenset()
    pickle_globals: frozenset[str] = frozenset()


def open_tensors(path: StrPath) -> Contents:
    """Open a tensor file of any format, whatever its name is, without executing anything in it.

    Args:
        path: A safetensors file, a torch file, or a picture with an embedding.

    Raises:
        BadFile: if the file is damaged, or contains anything that torch or safetensors would not write, even if that
            is harmless.
    """
    return _open_mapped(path, _read_payload)


def open_state_dict(path: StrPath) -> Contents:
    """Open the file of a whole model so that each tensor is read when it is accessed, from a torch file too.

    Returns:
        Contents with the tensors of the file's "state_dict", or of its top-level dict. The payload is None.

    Raises:
        BadFile: as `open_tensors`. Errors in a tensor's values appear as ValueError when it is accessed.
    """
    return _open_mapped(path, _read_state_dict)


def open_meta(path: StrPath) -> Contents:
    """Open a tensor file as `open_tensors` does, with all tensors on the meta device: shapes without values.

    Raises:
        BadFile: as `open_tensors`, except for faults in the values, which are not read.
    """
    return _open_mapped(path, _read_meta)


def as_dict(value: object) -> dict[object, object] | None:
    """Return a value of a torch file if it is a dict, else None."""
    return cast("dict[object, object]", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[object] | None:
    """Return a value of a torch file as a list if it is a list or a tuple, else None."""
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else None


def _open_mapped(path: StrPath, read: Callable[[Path, mmap], Contents]) -> Contents:
    """Map a file into memory and read it; turn the errors of a damaged file into BadFile with one line."""
    path = Path(path)
    with open_for_reading(path) as file:
        data = map_file(file) if path.stat().st_size else None
    if data is None:
        raise BadFile(f"{path.name} is empty: download or export it again")
    explanation = explain_foreign_file(data[:HEAD_BYTES])  # what was found, and what to do
    if explanation:
        message = f"{path.name} {explanation}"
        raise BadFile(message)
    try:
        return read(path, data)
    except DAMAGED_FILE_ERRORS as error:
        raise BadFile(f"{path.name} {_describe_error(error)}: do not trust it, download or export it again") from None


@dataclass(frozen=True)
class _Outline:
    """Contents before any tensor of a torch file is read, and that torch file, if it is one."""

    contents: Contents
    torch_file: TorchFile | None = None


def _read_payload(path: Path, data: mmap) -> Contents:
    outline = _read_outline(path, data)
    if outline.torch_file is None:
        return outline.contents
    return replace(outline.contents, payload=outline.torch_file.payload())


def _read_state_dict(path: Path, data: mmap) -> Contents:
    outline = _read_outline(path, data)
    if outline.torch_file is None:
        return outline.contents
    tensors = LazyStateDict(outline.torch_file)
    if tensors.unread:
        shown = ", ".join(map(_printable, tensors.unread[:MAX_SHOWN_MEMBERS]))
        warn(
            f"{path.name} has {quantity(len(tensors.unread), 'entry', 'entries')} beside its weights that trainings "
            f"do not leave ({shown}): {choose_number(len(tensors.unread), 'it is', 'they are')} ignored"
        )
    return replace(outline.contents, tensors=tensors)


def _read_meta(path: Path, data: mmap) -> Contents:
    outline = _read_outline(path, data)
    if outline.torch_file is None:
        return replace(outline.contents, tensors=meta_tensors(outline.contents.tensors))
    torch_file = outline.torch_file
    return replace(outline.contents, payload=_MetaRebuilder(torch_file.file_size).rebuild(torch_file.description))


class _MetaRebuilder(Rebuilder):
    """A rebuilder of tensors without values."""

    def __init__(self, file_size: int) -> None:
        super().__init__(lambda _: bytearray(), file_size)

    def _values(self, storage: Storage) -> Tensor:
        return torch.empty(storage.count, dtype=storage.dtype, device="meta")


def explain_foreign_file(head: bytes) -> str:
    """Say what a file is that is often found in place of a model, and what to do; "" for any other file.

    Args:
        head: The first bytes of the file.
    """
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return ""  # safetensors, which may begin with any bytes of a length
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"{", b"[")):
        message = JSON_MESSAGE.search(head.decode(errors="replace"))
        server_says = f" ({''.join(filter(str.isprintable, message[1]))[:MAX_SHOWN_MESSAGE]})" if message else ""
        return f"is JSON text, such as a server's error message{server_says}, not a model: download the file itself"
    explanations = (text_explanation for start, text_explanation in FOREIGN_STARTS.items() if text.startswith(start))
    return next(explanations, "")


def _read_outline(path: Path, data: mmap) -> _Outline:
    """Detect the format by the first bytes, and read everything but the values of tensors."""
    if data[:4] == ZIP_MAGIC:
        return _read_zip_outline(path, data)
    if data[8:9] == b"{":
        tensors = LazySafetensors(data)
        return _Outline(Contents(path, tensors, tensors.metadata))
    if kind := pictures.unsupported_format(data[:12]):
        raise BadFile(f"{path.name} is a {kind} picture, which this Pillow cannot read: save the same pixels as a PNG")
    if pictures.is_picture(data[:12]):
        return _Outline(Contents(path, payload=pictures.read(data[:]), container="picture"))
    if data[:1] == PICKLE_MAGIC:
        torch_file = read_legacy(data)
        return _Outline(Contents(path, container="legacy", pickle_globals=torch_file.pickle_globals), torch_file)
    raise ValueError(f"starts with {data[:8]!r}, so it is neither a safetensors nor a torch file")


def _read_zip_outline(path: Path, data: mmap) -> _Outline:
    packed_files = "" if TORCH_MEMBER in data[:HEAD_BYTES] else _find_packed_files(path)
    if packed_files:
        raise BadFile(f"{path.name} is a zip archive of files ({packed_files}): unpack it, and give the model inside")
    archive = ZipArchive(data)
    if archive.unchecked:
        count = len(archive.unchecked)
        warn(
            f"{path.name} has no checksums for {count} of its files ({_printable(archive.unchecked[0])}), so damage "
            "would not be noticed: compare its hash with its source's"
        )
    torch_file = read_zip(archive, len(data))
    if torch_file.unread:
        shown = ", ".join(map(_printable, torch_file.unread[:MAX_SHOWN_MEMBERS]))
        warn(
            f"{path.name} has {quantity(len(torch_file.unread), 'file')} in its zip that torch does not write "
            f"({shown}): {choose_number(len(torch_file.unread), 'it is', 'they are')} ignored"
        )
    contents = Contents(path, container="zip", members=archive.names, pickle_globals=torch_file.pickle_globals)
    return _Outline(contents, torch_file)


def _printable(name: str) -> str:
    return "".join(filter(str.isprintable, name))[-MAX_SHOWN_NAME_LENGTH:]


def _find_packed_files(path: Path) -> str:
    """List up to three files in a zip that is not torch's own format but packs models or their pictures; or ""."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, *DAMAGED_FILE_ERRORS):
        return ""  # the strict reader says what is wrong
    packed = [name for name in names if name.lower().endswith(PACKED_SUFFIXES)]
    is_torch = any(name.endswith(("data.pkl", "constants.pkl")) for name in names)
    return "" if is_torch else ", ".join(map(_printable, packed[:MAX_SHOWN_MEMBERS]))


def _describe_error(error: BaseException) -> str:
    """Return one printable line: the message of our readers, or a library's message in brackets."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    message = "".join(filter(str.isprintable, lines[0]))[:200]
    return message if type(error) is ValueError else f"cannot be read ({message})"
