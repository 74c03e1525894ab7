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

from velatura.tensors.archive import Archive
from velatura.tensors.lazy import Lazy, copied
from velatura.tensors.named import Sketch, Storage
from velatura.tensors.pickles import Machine
from velatura.tensors.rebuilt import Read, Rebuilder, shown, values_of

STATE = "state_dict"  # what a checkpoint calls its weights, where it holds more than them

MAGIC = 0x1950A86A20F9469CFC6C  # the first of the five pickles
LEGACY_VERSION = 1001
MOST_PICKLE_BYTES = 2**24  # the names and shapes of a checkpoint take about one


@dataclass(frozen=True)
class TorchFile:
    """The object that a file describes, the names of Python's world that its pickle speaks of, and its storages."""

    described: object
    names: frozenset[str]
    read: Read
    size: int

    def payload(self) -> object:
        """The object with all its tensors."""
        return Rebuilder(self.read, self.size).rebuilt(self.described)


class State(Lazy):
    """The tensors by name of a torch file of a whole model: in its state_dict if it has one, or else at its top.

    What else training left there (counters, callbacks, optimizers) is passed over.
    """

    def __init__(self, file: TorchFile) -> None:
        self._read = file.read
        self._sketches = dict(_named(file.described))
        budget = Rebuilder(file.read, file.size)
        for sketch in self._sketches.values():
            budget.refuse_impossible(sketch)
        uses = Counter(sketch.storage.key for sketch in self._sketches.values())
        self._shared: dict[str, Tensor | None] = {key: None for key, count in uses.items() if count > 1}

    def __getitem__(self, key: str) -> Tensor:
        sketch = self._sketches[key]
        return shown(sketch, self._values(sketch.storage))

    def sketch(self, key: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        sketch = self._sketches[key]
        return torch.empty(sketch.shape, dtype=getattr(torch, sketch.storage.dtype), device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._sketches)

    def __len__(self) -> int:
        return len(self._sketches)

    def _values(self, storage: Storage) -> Tensor:
        """The values of a storage, which are kept where several tensors show them, so that none is read often."""
        kept = self._shared.get(storage.key)
        if kept is not None:
            return kept
        values = values_of(storage, self._read)
        if storage.key in self._shared:
            self._shared[storage.key] = values
        return values


def read_zip(archive: Archive, file_size: int) -> TorchFile:
    """Read the pickle in a torch zip, and the storages that it describes."""
    if "constants.pkl" in archive:
        raise ValueError("is a TorchScript program, not weights")
    if archive.size("version") > 16 or archive.size("data.pkl") > MOST_PICKLE_BYTES:
        raise ValueError(f"has an index of {archive.size('data.pkl'):,} bytes, far too many")
    if "byteorder" in archive and bytes(archive.read("byteorder")) != b"little":
        raise ValueError("was written on a machine with another order of bytes")
    archive.read("version")
    data = bytes(archive.read("data.pkl"))
    machine = Machine(data)
    described = machine.load()
    if machine.position < len(data):
        raise ValueError("has something behind its pickle")

    def read(storage: Storage) -> bytearray:
        member = f"data/{storage.key}"
        if archive.size(member) != storage.size:
            raise ValueError(f"has {archive.size(member)} bytes in {member[:40]!r}, where {storage.size} are described")
        return archive.read(member)

    return TorchFile(described, frozenset(machine.names), read, file_size)


def read_legacy(data: mmap) -> TorchFile:
    """Read a file of torch before 1.6: a magic number, a version, a system, the object, and its storages' keys."""
    machine = Machine(data)
    if machine.load() != MAGIC:
        raise ValueError("is a bare pickle, not a torch file")
    if machine.load() != LEGACY_VERSION:
        raise ValueError("is of an unknown version of torch's old format")
    system = machine.load()
    if not isinstance(system, dict) or cast("dict[object, object]", system).get("little_endian") is not True:
        raise ValueError("was written on a machine with another order of bytes")
    described = machine.load()
    places = _places(data, machine.load(), machine)

    def read(storage: Storage) -> bytearray:
        if storage.key not in places:
            raise ValueError(f"lacks its storage {storage.key[:20]!r}")
        start = places[storage.key]
        return copied(data, start, start + storage.size)

    return TorchFile(described, frozenset(machine.names), read, len(data))


def _named(described: object) -> Iterator[tuple[str, Sketch]]:
    """The tensors that stand at the top of a description, or of its state_dict, by name."""
    top = cast("dict[object, object]", described) if isinstance(described, dict) else {}
    inner = top.get(STATE)
    found = cast("dict[object, object]", inner) if isinstance(inner, dict) else top
    return ((key, each) for key, each in found.items() if isinstance(key, str) and isinstance(each, Sketch))


def _places(data: mmap, keys: object, machine: Machine) -> dict[str, int]:
    """Where each storage's values start: behind the pickles, in the order of the keys, each behind its count."""
    if not isinstance(keys, list):
        raise ValueError("lacks the list of its storages")
    places: dict[str, int] = {}
    at = machine.position
    for key in cast("list[object]", keys):
        storage = machine.storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.key in places:
            raise ValueError(f"lists the storage {str(key)[:20]!r}, which it does not have, or twice")
        if data[at : at + 8] != struct.pack("<q", storage.count):
            raise ValueError(f"has another count of values in its storage {storage.key[:20]!r} than it says")
        places[storage.key] = at + 8
        at += 8 + storage.size
    if at != len(data):
        raise ValueError("is cut short, or has something behind its last storage")
    return places
