"""Files of safetensors, read strictly and written in the same bytes each time.

All that is wrong is a ValueError whose message goes on from "this file ...".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from mmap import mmap
from pathlib import Path
from typing import NoReturn, cast

import torch
from torch import Tensor

from velatura.errors import BadFile
from velatura.tensors.lazy import Lazy, let_go, numbers, sketches

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "BOOL": torch.bool,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
LONGEST_HEADER = 100_000_000  # the format's own limit
LARGEST = 2**40  # of a dimension: more than any disk holds


@dataclass(frozen=True)
class Entry:
    """A tensor as the header describes it; begin and end count from the header's end."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Tensors(Lazy):
    """The tensors of a safetensors file: a checkpoint's names alone are cheap."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self._body = 8 + int.from_bytes(data[:8], "little")
        if not 8 + 2 <= self._body <= min(len(data), LONGEST_HEADER):
            raise ValueError("has a header of impossible length")
        header = _parsed(data[8 : self._body])
        self.metadata = _metadata(header.pop(METADATA, {}))
        self._entries = {name: _entry(name, each) for name, each in header.items()}
        self._refuse_gaps()

    def __getitem__(self, key: str) -> Tensor:
        entry = self._entries[key]
        if entry.begin == entry.end:
            return torch.empty(entry.shape, dtype=entry.dtype)
        return numbers(self._data, self._body + entry.begin, self._body + entry.end).view(entry.dtype).view(entry.shape)

    def used(self, key: str, use: Callable[[Tensor], Tensor]) -> Tensor:
        """What use makes of a tensor that lies in the mapped file itself."""
        entry = self._entries[key]
        begin, end = self._body + entry.begin, self._body + entry.end
        with memoryview(self._data) as view:
            writable = not view.readonly
        if begin == end or not writable or begin % entry.dtype.itemsize:
            return use(self[key])
        there = torch.frombuffer(self._data, dtype=entry.dtype, count=prod(entry.shape), offset=begin)
        made = use(there.view(entry.shape))
        let_go(self._data, begin, end)
        return made

    def sketch(self, key: str) -> Tensor:
        """A tensor's shape and precision, on the meta device."""
        entry = self._entries[key]
        return torch.empty(entry.shape, dtype=entry.dtype, device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def _refuse_gaps(self) -> None:
        end = 0
        for entry in sorted(self._entries.values(), key=lambda each: (each.begin, each.end)):
            if entry.begin != end:
                raise ValueError("has tensors that overlap, or something between them")
            end = entry.end
        if self._body + end != len(self._data):
            raise ValueError("is cut short, or has something behind its last tensor")


def write(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write tensors as safetensors' own library orders them: the widest numbers first, so that all are aligned.

    Lazy ones are asked for one by one, when their turn comes. dtype: that of the floating-point numbers in the file, if
    not their own; they are turned into it one by one.
    """
    known = sketches(tensors)
    kinds = {name: dtype if dtype and each.is_floating_point() else each.dtype for name, each in known.items()}
    order = sorted(known, key=lambda name: (-kinds[name].itemsize, name))
    header: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + known[name].numel() * kinds[name].itemsize
        header[name] = {
            "dtype": NAMES[kinds[name]],
            "shape": list(known[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_dense(name, tensors[name], kinds[name]))


def _dense(name: str, tensor: Tensor, dtype: torch.dtype) -> memoryview:
    """The bytes of a tensor, in the order of its sizes and in the precision of the file."""
    dense = tensor.detach().to("cpu", dtype).contiguous()
    if dtype != tensor.dtype and not bool(dense.isfinite().all()) and bool(tensor.isfinite().all()):
        raise BadFile(f"{name} has values too large for {NAMES[dtype]}: write it in float32 or bfloat16")
    return dense.reshape(-1).view(torch.uint8).numpy().data


def _parsed(header: bytes) -> dict[str, object]:
    if not header.startswith(b"{") or not header.rstrip(b" ").endswith(b"}"):
        raise ValueError("has a header that is no JSON object, or with something around it")
    try:
        found: object = json.loads(header.decode(), object_pairs_hook=_once, parse_int=_whole, parse_constant=_none)
    except RecursionError:
        raise ValueError("has a header nested without end") from None
    return cast("dict[str, object]", found)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("gives something twice in its header")
    for name in found:
        name.encode()  # what cannot be written as UTF-8 is no name
    return found


def _whole(digits: str) -> int:
    return int(digits) if len(digits) <= 20 else -1  # which is refused wherever a number may be


def _none(text: str) -> NoReturn:
    raise ValueError(f"has {text} in its header")


def _metadata(found: object) -> dict[str, str]:
    items = cast("dict[str, object]", found) if isinstance(found, dict) else {"": None}
    if not all(isinstance(each, str) for each in items.values()):
        raise ValueError("has metadata that are not texts by name")
    return cast("dict[str, str]", items)


def _entry(name: str, found: object) -> Entry:
    fields = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    kind, shape, offsets = (fields.get(each) for each in ("dtype", "shape", "data_offsets"))
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if fields.keys() != {"dtype", "shape", "data_offsets"} or dtype is None:
        raise ValueError(f"describes its tensor {name[:60]!r} in no known way")
    sizes, places = _sizes(shape), _sizes(offsets)
    if sizes is None or places is None or len(places) != 2:
        raise ValueError(f"describes its tensor {name[:60]!r} with impossible numbers")
    begin, end = places
    if prod(each or 1 for each in sizes) > LARGEST:  # a size of 0 would hide the others
        raise ValueError(f"describes its tensor {name[:60]!r} as larger than any disk")
    if prod(sizes) * dtype.itemsize != end - begin:
        raise ValueError(f"has {end - begin} bytes for its tensor {name[:60]!r} of shape {sizes}")
    return Entry(dtype, sizes, begin, end)


def _sizes(found: object) -> tuple[int, ...] | None:
    items = cast("list[object]", found) if isinstance(found, list) else [None]
    sizes = [each for each in items if type(each) is int and 0 <= each <= LARGEST]
    return tuple(sizes) if len(sizes) == len(items) else None
