"""What torch saves, read as data: a zip around one pickle, or, until torch 1.6, five pickles in a row.

All that is wrong is a ValueError whose message goes on from "this file ...".
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap
from typing import cast

import torch
from torch import Tensor

from velatura.tensors.lazy import LazyTensors, copy_bytes
from velatura.tensors.pickle_globals import Storage, TensorDescription
from velatura.tensors.rebuild import ReadStorage, Rebuilder, storage_values, view_storage
from velatura.tensors.unpickler import SafeUnpickler
from velatura.tensors.zip_archive import ZipArchive

STATE_DICT_KEY = "state_dict"  # what a checkpoint calls its weights, where it holds more than them

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first of the five pickles
LEGACY_VERSION = 1001
MAX_PICKLE_BYTES = 2**24  # the names and shapes of a checkpoint take about one


@dataclass(frozen=True)
class TorchFile:
    """The object that a file describes, the names of Python's world that its pickle speaks of, and its storages."""

    description: object
    pickle_globals: frozenset[str]
    read_storage: ReadStorage
    file_size: int

    def payload(self) -> object:
        """The object with all its tensors."""
        return Rebuilder(self.read_storage, self.file_size).rebuild(self.description)


class LazyStateDict(LazyTensors):
    """The tensors by name of a torch file of a whole model: in its state_dict if it has one, or else at its top.

    What else training left there (counters, callbacks, optimizers) is passed over.
    """

    def __init__(self, file: TorchFile) -> None:
        self._read_storage = file.read_storage
        self._descriptions = dict(_named_descriptions(file.description))
        budget = Rebuilder(file.read_storage, file.file_size)
        for description in self._descriptions.values():
            budget.refuse_impossible(description)
        use_counts = Counter(description.storage.key for description in self._descriptions.values())
        self._shared: dict[str, Tensor | None] = {key: None for key, count in use_counts.items() if count > 1}

    def __getitem__(self, key: str) -> Tensor:
        description = self._descriptions[key]
        return view_storage(description, self._values(description.storage))

    def meta_tensor(self, key: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        description = self._descriptions[key]
        return torch.empty(description.shape, dtype=getattr(torch, description.storage.dtype), device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._descriptions)

    def __len__(self) -> int:
        return len(self._descriptions)

    def _values(self, storage: Storage) -> Tensor:
        """The values of a storage, which are kept where several tensors show them, so that none is read often."""
        shared = self._shared.get(storage.key)
        if shared is not None:
            return shared
        values = storage_values(storage, self._read_storage)
        if storage.key in self._shared:
            self._shared[storage.key] = values
        return values


def read_zip(archive: ZipArchive, file_size: int) -> TorchFile:
    """Read the pickle in a torch zip, and the storages that it describes."""
    if "constants.pkl" in archive:
        raise ValueError("is a TorchScript program, not weights")
    if archive.size("version") > 16 or archive.size("data.pkl") > MAX_PICKLE_BYTES:
        raise ValueError(f"has an index of {archive.size('data.pkl'):,} bytes, far too many")
    if "byteorder" in archive and bytes(archive.read("byteorder")) != b"little":
        raise ValueError("was written on a machine with another order of bytes")
    archive.read("version")
    data = bytes(archive.read("data.pkl"))
    unpickler = SafeUnpickler(data)
    description = unpickler.load()
    if unpickler.position < len(data):
        raise ValueError("has something behind its pickle")

    def read_storage(storage: Storage) -> bytearray:
        member = f"data/{storage.key}"
        if archive.size(member) != storage.byte_count:
            raise ValueError(
                f"has {archive.size(member)} bytes in {member[:40]!r}, where {storage.byte_count} are described"
            )
        return archive.read(member)

    return TorchFile(description, frozenset(unpickler.global_names), read_storage, file_size)


def read_legacy(data: mmap) -> TorchFile:
    """Read a file of torch before 1.6: a magic number, a version, a system, the object, and its storages' keys."""
    unpickler = SafeUnpickler(data)
    if unpickler.load() != LEGACY_MAGIC:
        raise ValueError("is a bare pickle, not a torch file")
    if unpickler.load() != LEGACY_VERSION:
        raise ValueError("is of an unknown version of torch's old format")
    system = unpickler.load()
    if not isinstance(system, dict) or cast("dict[object, object]", system).get("little_endian") is not True:
        raise ValueError("was written on a machine with another order of bytes")
    description = unpickler.load()
    offsets = _storage_offsets(data, unpickler.load(), unpickler)

    def read_storage(storage: Storage) -> bytearray:
        if storage.key not in offsets:
            raise ValueError(f"lacks its storage {storage.key[:20]!r}")
        start = offsets[storage.key]
        return copy_bytes(data, start, start + storage.byte_count)

    return TorchFile(description, frozenset(unpickler.global_names), read_storage, len(data))


def _named_descriptions(description: object) -> Iterator[tuple[str, TensorDescription]]:
    """The tensors that stand at the top of a description, or of its state_dict, by name."""
    top = cast("dict[object, object]", description) if isinstance(description, dict) else {}
    inner = top.get(STATE_DICT_KEY)
    tensors = cast("dict[object, object]", inner) if isinstance(inner, dict) else top
    return (
        (key, value) for key, value in tensors.items() if isinstance(key, str) and isinstance(value, TensorDescription)
    )


def _storage_offsets(data: mmap, keys: object, unpickler: SafeUnpickler) -> dict[str, int]:
    """Where each storage's values start: behind the pickles, in the order of the keys, each behind its count."""
    if not isinstance(keys, list):
        raise ValueError("lacks the list of its storages")
    offsets: dict[str, int] = {}
    position = unpickler.position
    for key in cast("list[object]", keys):
        storage = unpickler.storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.key in offsets:
            raise ValueError(f"lists the storage {str(key)[:20]!r}, which it does not have, or twice")
        if data[position : position + 8] != struct.pack("<q", storage.count):
            raise ValueError(f"has another count of values in its storage {storage.key[:20]!r} than it says")
        offsets[storage.key] = position + 8
        position += 8 + storage.byte_count
    if position != len(data):
        raise ValueError("is cut short, or has something behind its last storage")
    return offsets
