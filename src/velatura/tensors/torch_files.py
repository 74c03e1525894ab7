"""What torch saves, read as data: a zip around one pickle, or, until torch 1.6, five pickles in a row.

All that is wrong is a ValueError whose message goes on from "this file ...".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from mmap import mmap
from typing import cast

from velatura.tensors.archive import Archive
from velatura.tensors.named import Storage
from velatura.tensors.pickles import Machine
from velatura.tensors.rebuilt import Rebuilder

MAGIC = 0x1950A86A20F9469CFC6C  # the first of the five pickles
LEGACY_VERSION = 1001
MOST_PICKLE_BYTES = 2**24  # the names and shapes of a checkpoint take about one


@dataclass(frozen=True)
class TorchFile:
    """The object in a file, and the names of Python's world that its pickle speaks of."""

    payload: object
    names: frozenset[str]


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

    return TorchFile(Rebuilder(read, file_size).rebuilt(described), frozenset(machine.names))


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
        with memoryview(data) as view:
            return bytearray(view[start : start + storage.size])

    return TorchFile(Rebuilder(read, len(data)).rebuilt(described), frozenset(machine.names))


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
