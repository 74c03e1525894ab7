"""Tensors on disk: open any tensor file without running it, write so that nothing is ever half written."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors_torch
from torch import Tensor

from velatura.errors import BadFile, VelaturaWarning
from velatura.files import replacing

StrPath = str | PathLike[str]

ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch's magic number, pickled by protocol 2
MOST_PICKLE_BYTES = 2**24  # the names and shapes of a checkpoint take about one

_writer: Any = safetensors_torch

# torch refuses what it cannot read with a dozen types of exception; what it reads is harmless by then (weights_only)
UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(EOFError, AssertionError, MemoryError, ImportError, struct.error, zipfile.BadZipFile),
)


@dataclass(frozen=True)
class Contents:
    """What a tensor file holds.

    tensors and metadata are a safetensors file's, each tensor read at every asking; payload is whatever object a torch
    file holds.
    """

    path: Path
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    payload: object = None


def open_tensors(path: StrPath) -> Contents:
    """Open a tensor file by its content, whatever it is called, without running anything in it."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}: give the path of a file that can be read") from None
    if head.startswith(ZIP):
        return Contents(path, payload=_load(path, _repacked(path)))
    if head.startswith(LEGACY):
        return Contents(path, payload=_load(path, path.read_bytes()))
    if head[8:9] == b"{":
        tensors = _TensorsOf(path)
        return Contents(path, tensors, tensors.metadata)
    found = "an empty file" if not head else f"a file that starts with {head[:8]!r}"
    raise BadFile(f"{path.name} is {found}, neither safetensors nor torch: download or export it again")


def as_dict(value: object) -> dict[object, object] | None:
    """A dict that came out of a torch file, or None for anything else."""
    return cast("dict[object, object]", value) if isinstance(value, dict) else None


def as_list(value: object) -> list[object] | None:
    """A list or tuple that came out of a torch file, or None for anything else."""
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else None


def write_safetensors(path: StrPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors and metadata as safetensors, at once or not at all."""
    dense = {key: each.detach().cpu().contiguous() for key, each in tensors.items()}
    with replacing(path) as beside:
        _writer.save_file(dense, beside, dict(metadata or {}))


def write_torch(path: StrPath, payload: object) -> None:
    """Write an object of tensors as torch does, in the container that every version since 1.6 and A1111 read."""
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    with zipfile.ZipFile(buffer) as modern, replacing(path) as beside:
        beside.write_bytes(_classic({name.partition("/")[2]: modern.read(name) for name in modern.namelist()}))


class _TensorsOf(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for: a checkpoint's names alone are cheap."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _damage_named(path):
            self._file: Any = safe_open(fspath(path), framework="pt")  # safetensors' own class has no types
            self._keys = dict.fromkeys(cast("list[str]", self._file.keys()))
            self.metadata: dict[str, str] = dict(self._file.metadata() or {})

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        with _damage_named(self._path):
            tensor: Tensor = self._file.get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


@contextmanager
def _damage_named(path: Path) -> Generator[None]:
    try:
        yield
    except (SafetensorError, OSError, *UNREADABLE) as error:
        raise BadFile(f"{path.name} is a damaged safetensors file ({_short(error)}): download it again") from None


def _load(path: Path, data: bytes) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            raise BadFile(f"{path.name} cannot be read without running it ({_short(error)}): do not trust it") from None


def _repacked(path: Path) -> bytes:
    """Check a torch zip and pack its members anew, so that what was checked and what is read are the same bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _classic(dict(_members(path, archive)))
    except (*UNREADABLE, OSError) as error:
        raise BadFile(f"{path.name} is a damaged torch file ({_short(error)}): download it again") from None


def _members(path: Path, archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """The members of a torch zip that matter, by their names below the root, within what the file's size allows."""
    infos = archive.infolist()
    roots = {info.filename.partition("/")[0] for info in infos}
    if len(roots) != 1 or len({info.filename for info in infos}) < len(infos):
        raise BadFile(f"{path.name} is no torch file: its members are not in one folder, each once")
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1 for info in infos):
        raise BadFile(f"{path.name} is packed or encrypted, as torch never does: unpack and save it again")
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise BadFile(f"{path.name} claims to hold more than its size: download it again")
    if not any(info.CRC for info in infos):
        warnings.warn(f"{path.name} has no checksums, so damage would not be noticed", VelaturaWarning, stacklevel=2)
        _forget_checksums(infos)
    for info in infos:
        name = info.filename.partition("/")[2]
        if name == "data.pkl" and info.file_size > MOST_PICKLE_BYTES:
            raise BadFile(f"{path.name} has an index of {info.file_size} bytes, far too many: do not trust it")
        yield name, archive.read(info)


def _forget_checksums(infos: list[zipfile.ZipInfo]) -> None:
    for info in infos:
        del info.CRC


def _classic(members: Mapping[str, bytes]) -> bytes:
    """Pack a torch zip of the classic members alone: A1111 before 1.10 refuses files with any other."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            if name in {"data.pkl", "version"} or name.removeprefix("data/").isdigit():
                archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)  # with no time in it, as torch does
    return buffer.getvalue()


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "".join(filter(str.isprintable, lines[0]))[:100]
