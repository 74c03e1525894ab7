"""Safetensors files: read strictly, written in the same bytes for the same tensors.

Every fault is a ValueError whose message continues "FILE ...".
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
from velatura.tensors.lazy import MAX_DIMENSION, MAX_DIMENSIONS, LazyTensors, byte_tensor, meta_tensors, release_pages
from velatura.tensors.tensor_names import check_tensor_name

SAFETENSORS_DTYPES = {
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
DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
METADATA_KEY = "__metadata__"
MAX_HEADER_BYTES = 100_000_000  # limit of the format
MAX_TENSORS = 30_000  # SDXL has 2,500, and its largest LoRAs 10,000
MAX_HEADER_COMMAS = 2**22  # those in metadata, such as the tags of all training pictures, among them


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header describes it. Begin and end are bytes after the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class LazySafetensors(LazyTensors):
    """Tensors of a safetensors file, read on access. Names and shapes come from the header alone."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self._body = 8 + int.from_bytes(data[:8], "little")
        if not 8 + 2 <= self._body <= min(len(data), MAX_HEADER_BYTES):
            raise ValueError("has a header whose length is impossible")
        header = _parse_header(data[8 : self._body])
        self.metadata = _check_metadata(header.pop(METADATA_KEY, {}))
        self._infos = {name: _parse_tensor_info(name, fields) for name, fields in header.items()}
        self._check_layout()

    def __getitem__(self, key: str) -> Tensor:
        info = self._infos[key]
        if info.begin == info.end:
            return torch.empty(info.shape, dtype=info.dtype)
        return byte_tensor(self._data, self._body + info.begin, self._body + info.end).view(info.dtype).view(info.shape)

    def apply(self, key: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return function(tensor), where the tensor is a view of the mapped file if its alignment allows that."""
        info = self._infos[key]
        begin, end = self._body + info.begin, self._body + info.end
        with memoryview(self._data) as view:
            is_writable = not view.readonly
        if begin == end or not is_writable or begin % info.dtype.itemsize:
            return function(self[key])
        tensor = torch.frombuffer(self._data, dtype=info.dtype, count=prod(info.shape), offset=begin)
        result = function(tensor.view(info.shape))
        release_pages(self._data, begin, end)
        return result

    def meta_tensor(self, key: str) -> Tensor:
        """Return a tensor's shape and precision, on the meta device."""
        info = self._infos[key]
        return torch.empty(info.shape, dtype=info.dtype, device="meta")

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def _check_layout(self) -> None:
        """Raise ValueError unless the tensors fill the file without gaps or overlaps."""
        end = 0
        for info in sorted(self._infos.values(), key=lambda info: (info.begin, info.end)):
            if info.begin != end:
                raise ValueError("has tensors that overlap, or unused bytes between tensors")
            end = info.end
        if self._body + end != len(self._data):
            raise ValueError("is cut short, or has bytes after its last tensor")


def write(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write tensors in the order of the safetensors library: the widest dtypes first, so that all are aligned.

    Args:
        path: File to write to.
        tensors: Tensors by name. They are read and converted one by one.
        metadata: Texts by name.
        dtype: Precision of floating-point tensors in the file; None keeps each tensor's precision.

    Raises:
        BadFile: if a finite value becomes infinite in the precision.
    """
    meta = meta_tensors(tensors)
    dtypes = {name: dtype if dtype and tensor.is_floating_point() else tensor.dtype for name, tensor in meta.items()}
    order = sorted(meta, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, object] = {METADATA_KEY: dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + meta[name].numel() * dtypes[name].itemsize
        header[name] = {
            "dtype": DTYPE_NAMES[dtypes[name]],
            "shape": list(meta[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_tensor_bytes(name, tensors[name], dtypes[name]))


def _tensor_bytes(name: str, tensor: Tensor, dtype: torch.dtype) -> memoryview:
    """Return the contiguous bytes of a tensor in the precision of the file."""
    dense = tensor.detach().to("cpu", dtype).contiguous()
    if dtype != tensor.dtype and not bool(dense.isfinite().all()) and bool(tensor.isfinite().all()):
        raise BadFile(f"{name} has values too large for {DTYPE_NAMES[dtype]}: write it in float32 or bfloat16")
    return dense.reshape(-1).view(torch.uint8).numpy().data


def _parse_header(header: bytes) -> dict[str, object]:
    if not header.startswith(b"{") or not header.rstrip(b" ").endswith(b"}"):
        raise ValueError("has a header that is not a JSON object, or has other bytes around it")
    if header.count(b",") > MAX_HEADER_COMMAS:  # before they become objects, which take ten times the memory
        raise ValueError("has a header of far more items than that of a model")
    if header.count(b'"data_offsets"') > MAX_TENSORS:
        raise ValueError(f"has more than {MAX_TENSORS:,} tensors, far more than a model")
    try:
        fields: object = json.loads(
            header.decode(), object_pairs_hook=_refuse_duplicates, parse_int=_parse_int, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError("has a header that is nested too deeply") from None
    return cast("dict[str, object]", fields)


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("has a key twice in its header")
    for name in fields:
        name.encode()  # raises for lone surrogates
    return fields


def _parse_int(digits: str) -> int:
    return int(digits) if len(digits) <= 20 else -1  # negative numbers are refused everywhere


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"has {text} in its header")


def _check_metadata(value: object) -> dict[str, str]:
    items = cast("dict[str, object]", value) if isinstance(value, dict) else {"": None}
    if not all(isinstance(text, str) for text in items.values()):
        raise ValueError("has metadata that is not a dict of texts")
    return cast("dict[str, str]", items)


def _parse_tensor_info(name: str, value: object) -> TensorInfo:
    check_tensor_name(name)
    fields = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    dtype_name, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    dtype = SAFETENSORS_DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if fields.keys() != {"dtype", "shape", "data_offsets"} or dtype is None:
        raise ValueError(f"describes its tensor {name[:60]!r} in an unknown way")
    sizes, bounds = _sizes(shape), _sizes(offsets)
    if sizes is None or bounds is None or len(bounds) != 2:
        raise ValueError(f"describes its tensor {name[:60]!r} with impossible numbers")
    begin, end = bounds
    if len(sizes) > MAX_DIMENSIONS:
        raise ValueError(f"describes its tensor {name[:60]!r} with {len(sizes):,} dimensions")
    if prod(size or 1 for size in sizes) > MAX_DIMENSION:  # a size of 0 would hide the others
        raise ValueError(f"describes its tensor {name[:60]!r} as larger than any disk")
    if prod(sizes) * dtype.itemsize != end - begin:
        raise ValueError(f"has {end - begin} bytes for its tensor {name[:60]!r} of shape {str(sizes)[:60]}")
    return TensorInfo(dtype, sizes, begin, end)


def _sizes(value: object) -> tuple[int, ...] | None:
    items = cast("list[object]", value) if isinstance(value, list) else [None]
    sizes = [item for item in items if type(item) is int and 0 <= item <= MAX_DIMENSION]
    return tuple(sizes) if len(sizes) == len(items) else None
