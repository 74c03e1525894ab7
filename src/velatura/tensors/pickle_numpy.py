"""Numbers and arrays of numpy in a torch file's pickle, read as data without numpy.

Every fault is a ValueError whose message continues "FILE ...".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from math import prod
from typing import cast

import torch

from velatura.tensors.tensor_descriptions import Storage, TensorDescription, require_size

NUMPY_LAYOUTS = {  # numpy's type codes and the formats of the struct module
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "b1": "?",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "i1": "b",
    "u8": "Q",
    "u4": "I",
    "u2": "H",
    "u1": "B",
}
NUMPY_DTYPES = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "b1": torch.bool,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u8": torch.uint64,
    "u4": torch.uint32,
    "u2": torch.uint16,
    "u1": torch.uint8,
    "c8": torch.complex64,
    "c16": torch.complex128,
}
BIG_ENDIAN = ">"
MAX_NUMPY_DIMENSIONS = 64


@dataclass
class PickledNumpyType:
    """A dtype of numpy. Codes beside NUMPY_DTYPES are of texts, dates and objects, which are not read."""

    type_code: str
    byte_order: str = "<"

    def __str__(self) -> str:
        return f"numpy.dtype {self.type_code}"

    def set_state(self, state: tuple[object, ...]) -> None:
        """Read the byte order, which follows the version."""
        self.byte_order = str(state[1]) if len(state) > 1 else "<"


@dataclass(frozen=True)
class InlineStorage(Storage):
    """A storage whose bytes are in the pickle itself. Many arrays may have the same bytes, which are never copied here.

    Attributes:
        data: The bytes.
        is_big_endian: Their numbers are in big-endian order.
    """

    data: bytes = field(default=b"", repr=False)
    is_big_endian: bool = False


@dataclass(eq=False)
class PickledNumpyArray:
    """An array of numpy, which is empty until its state is set.

    Attributes:
        description: The tensor of the same values; None for an array of texts or objects, which are not read.
    """

    description: TensorDescription | None = None

    def set_state(self, state: tuple[object, ...]) -> None:
        """Read the shape, the type, the order and the bytes, which follow the version."""
        if len(state) != 5:
            raise ValueError("has an array of numpy whose state is not one of numpy")
        _, shape, numpy_type, is_fortran, data = state
        self.description = _describe_array(shape, numpy_type, data, is_fortran=bool(is_fortran))


def numpy_type(type_code: object, *_: object) -> PickledNumpyType:
    """Return the dtype that a pickle names by its code."""
    if not isinstance(type_code, str):
        raise ValueError("has a numpy number of an unknown type")
    return PickledNumpyType(type_code.lstrip("<>=|"), BIG_ENDIAN if type_code.startswith(BIG_ENDIAN) else "<")


def numpy_scalar(scalar_type: object, data: object) -> object:
    """Return the number that the bytes of a numpy scalar hold, or None for a scalar that is not a number."""
    if not isinstance(scalar_type, PickledNumpyType):
        raise ValueError("has a numpy number of an unknown type")
    if scalar_type.type_code not in NUMPY_LAYOUTS:
        return None
    layout = (BIG_ENDIAN if scalar_type.byte_order == BIG_ENDIAN else "<") + NUMPY_LAYOUTS[scalar_type.type_code]
    if not isinstance(data, bytes) or struct.calcsize(layout) != len(data):
        raise ValueError("has a numpy number whose size does not fit its type")
    return struct.unpack(layout, data)[0]


def empty_array(*_: object) -> PickledNumpyArray:
    """Return an array without values, as numpy makes one before its state is set."""
    return PickledNumpyArray()


def array_from_buffer(data: object, array_type: object, shape: object, order: object = "C") -> PickledNumpyArray:
    """Return the array that pickles of protocol 5 build from bytes."""
    return PickledNumpyArray(_describe_array(shape, array_type, data, is_fortran=order == "F"))


def _describe_array(shape: object, array_type: object, data: object, *, is_fortran: bool) -> TensorDescription | None:
    sizes = cast("tuple[object, ...]", shape) if isinstance(shape, tuple) else None
    if not isinstance(array_type, PickledNumpyType) or sizes is None or len(sizes) > MAX_NUMPY_DIMENSIONS:
        raise ValueError("has an array of numpy whose state is not one of numpy")
    dtype = NUMPY_DTYPES.get(array_type.type_code)
    if dtype is None or not isinstance(data, bytes):
        return None
    lengths = tuple(map(require_size, sizes))
    count = prod(lengths)
    if count * dtype.itemsize != len(data):
        raise ValueError(f"has an array of numpy of shape {lengths} in {len(data)} bytes")
    is_big_endian = array_type.byte_order == BIG_ENDIAN
    key = f"in the pickle, {id(data)} as {array_type.byte_order}{array_type.type_code}"  # one key, one tensor
    storage = InlineStorage(dtype, key, count, data, is_big_endian)
    return TensorDescription(storage, 0, lengths, _strides(lengths, is_fortran=is_fortran))


def _strides(shape: tuple[int, ...], *, is_fortran: bool) -> tuple[int, ...]:
    """Return the steps between values: the last dimension is the closest, in Fortran's order the first."""
    if is_fortran:
        return tuple(prod(shape[:index]) for index in range(len(shape)))
    return tuple(prod(shape[index + 1 :]) for index in range(len(shape)))
