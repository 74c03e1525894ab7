"""Torch files, read as data: a zip with one pickle, or the legacy format before torch 1.6: five pickles in a row.

Every fault is a ValueError whose message continues "FILE ...".
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import TypeVar, cast

import torch
from torch import Tensor

from velatura.tensors.lazy import LazyTensors, copy_bytes
from velatura.tensors.pickle_numpy import PickledNumpyArray
from velatura.tensors.rebuild import ReadStorage, Rebuilder, TensorChecker, storage_tensor, view_storage
from velatura.tensors.tensor_descriptions import Storage, TensorDescription, swap_byte_order
from velatura.tensors.tensor_names import check_tensor_name
from velatura.tensors.unpickler import SafeUnpickler
from velatura.tensors.zip_archive import ZipArchive

# Keys of the weights in a checkpoint that holds more than weights, the usual one first
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # of a model inside DataParallel, or inside torch.compile

# What trainings leave in a checkpoint beside the weights: Lightning's, those of torch's tutorials, DreamBooth's
TRAINING_ENTRIES = re.compile(
    r"(db_)?(epoch|global_step)s?|steps?|iter(ation)?s?|(best_)?(loss|score|metric)|args|config|cfg|opts?|rng_states?"
    r"|pytorch-lightning_version|loops|callbacks|checkpoint_callback_\w+|early_stop_callback_\w+"
    r"|(datamodule_)?(hparams_(name|type)|hyper_parameters)|((native_)?amp_scaling_state|\w*MixedPrecision\w*)"
    r"|(optimizer|(lr_)?scheduler|scaler|grad_scaler)(s|_states?|_state_dict)?"
)
MAX_ENTRY_LENGTH = 60  # characters of an entry's name in a message

AnyTensor = TypeVar("AnyTensor")

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # value of the first of the five pickles
LEGACY_VERSION = 1001
# What torch writes beside the storages, in all its versions
TORCH_MEMBERS = frozenset(
    {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
)
MAX_VERSION_BYTES = 16
MAX_PICKLE_BYTES = 2**24  # a checkpoint's names and shapes take about 1 MiB


@dataclass(frozen=True)
class TorchFile:
    """A torch file before its tensors are read.

    Attributes:
        description: Object of the file, with descriptions in place of tensors.
        pickle_globals: Names that the pickles refer to.
        read_storage: Returns the bytes of a storage.
        file_size: Bytes of the file.
        unread: Members of a zip that torch does not write, or that the pickle does not refer to.
    """

    description: object
    pickle_globals: frozenset[str]
    read_storage: ReadStorage
    file_size: int
    unread: tuple[str, ...] = ()

    def payload(self) -> object:
        """Return the object with all its tensors."""
        return Rebuilder(self.read_storage, self.file_size).rebuild(self.description)


class LazyStateDict(LazyTensors):
    """Tensors by name of a model's torch file, read on access: of its "state_dict", or else of its top-level dict.

    Other contents that a training left there (counters, callbacks, optimizers) are ignored.

    Attributes:
        unread: Names of other entries, which no training is known to leave.
    """

    def __init__(self, file: TorchFile) -> None:
        self._read_storage = file.read_storage
        key, entries = _find_weights(file.description)
        self.unread = tuple(_name_unread(file.description, key, entries))
        self._descriptions = dict(strip_wrapper_prefixes(_tensors_of_dict(entries)))
        checker = TensorChecker(file.file_size)
        for name, description in self._descriptions.items():
            check_tensor_name(name)
            checker.check(description)
        use_counts = Counter(description.storage.key for description in self._descriptions.values())
        self._shared: dict[str, Tensor | None] = {key: None for key, count in use_counts.items() if count > 1}

    def __getitem__(self, key: str) -> Tensor:
        description = self._descriptions[key]
        return view_storage(description, self._values(description.storage))

    def meta_tensor(self, key: str) -> Tensor:
        """Return a tensor's shape and precision, on the meta device."""
        description = self._descriptions[key]
        return torch.empty(description.shape, dtype=description.storage.dtype, device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._descriptions)

    def __len__(self) -> int:
        return len(self._descriptions)

    def _values(self, storage: Storage) -> Tensor:
        """Read a storage. Storages that several tensors share are cached, so that they are read once."""
        shared = self._shared.get(storage.key)
        if shared is not None:
            return shared
        values = storage_tensor(storage, self._read_storage)
        if storage.key in self._shared:
            self._shared[storage.key] = values
        return values


def read_zip(archive: ZipArchive, file_size: int) -> TorchFile:
    """Read the pickle of a torch zip.

    Args:
        archive: The zip.
        file_size: Bytes of the file.

    Raises:
        ValueError: if the zip is not one that torch writes for weights, or its pickle is refused.
    """
    if "constants.pkl" in archive:
        raise ValueError("is a TorchScript program, not weights")
    if archive.size("version") > MAX_VERSION_BYTES:
        raise ValueError(f"has a version of {archive.size('version'):,} bytes, the limit is {MAX_VERSION_BYTES}")
    if archive.size("data.pkl") > MAX_PICKLE_BYTES:
        raise ValueError(f"has a pickle of {archive.size('data.pkl'):,} bytes, the limit is {MAX_PICKLE_BYTES:,}")
    byte_order = bytes(archive.read("byteorder")) if "byteorder" in archive else b"little"
    if byte_order not in {b"little", b"big"}:
        raise ValueError(f"has the byte order {byte_order[:20]!r}, where torch writes little or big")
    archive.read("version")  # for its checksum
    data = bytes(archive.read("data.pkl"))
    unpickler = SafeUnpickler(data)
    description = unpickler.load()
    if unpickler.position < len(data):
        raise ValueError("has bytes after its pickle")

    def read_storage(storage: Storage) -> bytearray:
        member = f"data/{storage.key}"
        if archive.size(member) != storage.byte_count:
            raise ValueError(
                f"has {archive.size(member)} bytes in {member[:40]!r}, but its pickle says {storage.byte_count}"
            )
        values = archive.read(member)
        return swap_byte_order(values, storage.dtype) if byte_order == b"big" else values

    known = TORCH_MEMBERS | {f"data/{key}" for key in unpickler.storages}
    unread = (*sorted(archive.names - known), *archive.strays)
    return TorchFile(description, frozenset(unpickler.global_names), read_storage, file_size, unread)


def read_legacy(data: mmap) -> TorchFile:
    """Read the legacy format: pickles of a magic number, a version, system info, the object, and its storage keys.

    Its values are little-endian whatever the system info says: torch converts them on big-endian machines.

    Raises:
        ValueError: if any of them is not as torch writes it.
    """
    unpickler = SafeUnpickler(data)
    if unpickler.load() != LEGACY_MAGIC:
        raise ValueError("is a bare pickle, not a torch file")
    if unpickler.load() != LEGACY_VERSION:
        raise ValueError("has an unknown version of torch's legacy format")
    system = unpickler.load()
    if not isinstance(system, dict) or "little_endian" not in system:
        raise ValueError("has no system info of torch's legacy format")
    description = unpickler.load()
    offsets = _storage_offsets(data, unpickler.load(), unpickler)

    def read_storage(storage: Storage) -> bytearray:
        if storage.key not in offsets:
            raise ValueError(f"does not contain its storage {storage.key[:20]!r}")
        start = offsets[storage.key]
        return copy_bytes(data, start, start + storage.byte_count)

    return TorchFile(description, frozenset(unpickler.global_names), read_storage, len(data))


def _find_weights(description: object) -> tuple[str, Mapping[object, object]]:
    """Return the key of the weights in a description's top-level dict, "" if that is them, and their dict."""
    top = cast("dict[object, object]", description) if isinstance(description, dict) else {}
    has_tensors = bool(_tensors_of_dict(top))
    for key in STATE_DICT_KEYS:
        inner = cast("dict[object, object]", top[key]) if isinstance(top.get(key), dict) else None
        if inner is not None and (key == STATE_DICT_KEYS[0] or (_tensors_of_dict(inner) and not has_tensors)):
            return key, inner
    return "", top


def _name_unread(description: object, key: str, entries: Mapping[object, object]) -> Iterator[str]:
    """Yield the names of entries that are neither weights nor what a training leaves, with the number of their tensors.

    Args:
        description: The description of the file's object.
        key: The key of the weights in it, or "".
        entries: The weights, and what stands between them.
    """
    tensors = _tensors_of_dict(entries)
    top = cast("dict[object, object]", description) if key else {}
    others = {name: value for name, value in entries.items() if name not in tensors}
    others |= {name: value for name, value in top.items() if name != key}
    for name, value in others.items():
        if not is_training_entry(name):
            count = 1 if isinstance(value, TensorDescription) else len(_tensors_of_dict(value))
            yield str(name)[:MAX_ENTRY_LENGTH] + (f" with tensors: {count}" if count else "")


def is_training_entry(name: object) -> bool:
    """Return True for the name of an entry that trainings leave in a torch file beside the weights."""
    return isinstance(name, str) and TRAINING_ENTRIES.fullmatch(name) is not None


def strip_wrapper_prefixes(tensors: Mapping[str, AnyTensor]) -> Mapping[str, AnyTensor]:
    """Return tensors without a prefix that a wrapper of the model put before all their names."""
    for prefix in (*WRAPPER_PREFIXES, *WRAPPER_PREFIXES):  # one may be inside the other
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _tensors_of_dict(value: object) -> dict[str, TensorDescription]:
    items = cast("dict[object, object]", value).items() if isinstance(value, dict) else ()
    tensors: dict[str, TensorDescription] = {}
    for key, item in items:
        description = item.description if isinstance(item, PickledNumpyArray) else item
        if isinstance(key, str) and isinstance(description, TensorDescription):
            tensors[key] = description
    return tensors


def _storage_offsets(data: mmap, keys: object, unpickler: SafeUnpickler) -> dict[str, int]:
    """Return the offset of every storage's values: they follow the pickles in the order of the keys, after a count."""
    if not isinstance(keys, list):
        raise ValueError("does not contain the list of its storages")
    offsets: dict[str, int] = {}
    position = unpickler.position
    for key in cast("list[object]", keys):
        storage = unpickler.storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.key in offsets:
            raise ValueError(f"lists the storage {str(key)[:20]!r} twice, or does not describe it")
        if data[position : position + 8] != struct.pack("<q", storage.count):
            raise ValueError(f"gives two different sizes for its storage {storage.key[:20]!r}")
        offsets[storage.key] = position + 8
        position += 8 + storage.byte_count
    if position != len(data):
        raise ValueError("is cut short, or has bytes after its last storage")
    return offsets
