"""Names that a torch file's pickle may refer to. They stand for plain values and descriptions of tensors.

Nothing is imported: each allowed name has its own harmless function here, and every other name is refused. Every fault
is a ValueError whose message continues "FILE ...".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch

from velatura.tensors.lazy import MAX_DIMENSION

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
STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
# Classes that trainers use as keys of their callbacks in checkpoints. They become strings here.
INERT_CLASS_PREFIXES = ("pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.", "main.")


@dataclass(frozen=True)
class PickleGlobal:
    """A name that a pickle refers to. It is never imported."""

    text: str


@dataclass(frozen=True)
class Storage:
    """A storage of a torch file: `count` values of a dtype under a key. The device in the pickle is ignored."""

    dtype: torch.dtype
    key: str
    count: int

    @property
    def byte_count(self) -> int:
        """Return the bytes of all its values."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class TensorDescription:
    """A tensor as a pickle describes it: a view of a storage. Offset and strides count values, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class PickledOrderedDict(dict[object, object]):
    """An OrderedDict, the type of state dicts. Its attributes are dropped."""


class PickledParameterDict(dict[object, object]):
    """A ParameterDict, the type of old embeddings."""


@dataclass
class PickledNumpyType:
    """A dtype of a numpy scalar."""

    type_code: str
    byte_order: str = "<"


def resolve_global(module: str, name: str) -> object:
    """Return the harmless stand-in for a name.

    Raises:
        ValueError: if the name is not on the list.
    """
    text = f"{module}.{name}"
    if module in {"torch", "torch.cuda"} and name in STORAGE_DTYPES:
        return PickleGlobal(f"torch.{name}")
    if text.startswith(INERT_CLASS_PREFIXES):
        return text
    if text not in ALLOWED_CALLS:
        raise ValueError(f"refers to {text[:60]!r} in its pickle, which weights do not need")
    return PickleGlobal(text)


def call_global(name: PickleGlobal, arguments: tuple[object, ...]) -> object:
    """Build the value or description that a call stands for, with the function of this module for that name.

    Raises:
        ValueError: if the name is not callable, or torch would not pass these arguments.
    """
    if name.text not in ALLOWED_CALLS:
        raise ValueError(f"calls {name.text!r}, which is not a function")
    try:
        return ALLOWED_CALLS[name.text](*arguments)
    except TypeError:
        raise ValueError(f"calls {name.text!r} with arguments that torch would not pass") from None


def set_state(target: object, state: object) -> object:
    """Return the target after a pickle has set its state. Three types allow that; all others are refused."""
    if isinstance(target, PickledOrderedDict):
        return target
    if isinstance(target, PickledParameterDict):
        target.update(_require_dict(_require_dict(state).get("_parameters", {})))
        return target
    if isinstance(target, PickledNumpyType) and isinstance(state, tuple):
        target.byte_order = str(cast("tuple[object, ...]", state)[1])
        return target
    raise ValueError(f"sets attributes of a {type(target).__name__}, which weights do not need")


def check_key(value: object) -> object:
    """Return a key of a dict or an item of a set; refuse all but texts and numbers, whose hash is cheap."""
    if not isinstance(value, str | bytes | int | float | None):
        raise ValueError(f"has a {type(value).__name__} as a key of a dict")
    return value


def module_of(persistent_id: object) -> PickleGlobal | None:
    """Return the class of a persistent id that torch's legacy format writes with its source code, else None."""
    parts = cast("tuple[object, ...]", persistent_id) if isinstance(persistent_id, tuple) else ()
    module = parts[1] if len(parts) == 4 and parts[0] == "module" else None
    return module if isinstance(module, PickleGlobal) else None


def storage_of(persistent_id: object) -> Storage:
    """Return the storage that a persistent id describes.

    Raises:
        ValueError: if the id is not ("storage", type, key, device, count), and in the legacy format None behind it.
    """
    parts = _require_tuple(persistent_id)
    if len(parts) not in {5, 6} or parts[0] != "storage" or (*parts, None)[5] is not None:
        raise ValueError("has a persistent id that is not of a storage")
    storage_type, key, count = parts[1], parts[2], parts[4]
    if not isinstance(storage_type, PickleGlobal) or storage_type.text.removeprefix("torch.") not in STORAGE_DTYPES:
        raise ValueError("has a storage of an unknown type")
    if not isinstance(key, str) or not key.isdigit():
        raise ValueError(f"has a storage with the key {str(key)[:40]!r}, where torch writes a number")
    return Storage(STORAGE_DTYPES[storage_type.text.removeprefix("torch.")], key, _require_size(count))


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> TensorDescription:
    if not isinstance(storage, Storage):
        raise ValueError(f"has a tensor over a {type(storage).__name__}, not over a storage")
    return TensorDescription(
        storage,
        _require_size(offset),
        tuple(map(_require_size, _require_tuple(shape))),
        tuple(map(_require_size, _require_tuple(stride))),
    )


def _rebuild_parameter(data: object, *_: object) -> TensorDescription:
    if not isinstance(data, TensorDescription):
        raise ValueError(f"has a parameter that is a {type(data).__name__}")
    return data


def _ordered_dict(pairs: object = ()) -> PickledOrderedDict:
    ordered = PickledOrderedDict()
    for pair in _require_list(pairs):
        key, value = _require_list(pair)
        ordered[check_key(key)] = value
    return ordered


def _empty_dict(*_: object) -> PickledOrderedDict:
    return PickledOrderedDict()


def _size_tuple(sizes: object) -> tuple[object, ...]:
    return tuple(_require_list(sizes))


def _set(items: object = ()) -> set[object]:
    return set(map(check_key, _require_list(items)))


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise ValueError("has bytes in an encoding other than latin-1")
    return text.encode("latin-1")


def _numpy_type(type_code: object, *_: object) -> PickledNumpyType:
    if type_code not in NUMPY_LAYOUTS:
        raise ValueError("has a numpy number of an unknown type")
    return PickledNumpyType(str(type_code))


def _numpy_scalar(numpy_type: object, data: object) -> object:
    if not isinstance(numpy_type, PickledNumpyType) or not isinstance(data, bytes):
        raise ValueError("has a numpy number of an unknown type")
    layout = (">" if numpy_type.byte_order == ">" else "<") + NUMPY_LAYOUTS[numpy_type.type_code]
    if struct.calcsize(layout) != len(data):
        raise ValueError("has a numpy number whose size does not fit its type")
    return struct.unpack(layout, data)[0]


def _require_size(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_DIMENSION:
        raise ValueError(f"has a tensor with a size or an offset of {str(value)[:40]}")
    return value


def _require_tuple(value: object) -> tuple[object, ...]:
    if not isinstance(value, tuple):
        raise ValueError(f"has a {type(value).__name__} where torch writes a tuple")
    return cast("tuple[object, ...]", value)


def _require_list(value: object) -> Iterable[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"has a {type(value).__name__} where torch writes a list")
    return cast("list[object]", value)


def _require_dict(value: object) -> dict[object, object]:
    if not isinstance(value, dict):
        raise ValueError(f"has a {type(value).__name__} where torch writes a dict")
    return cast("dict[object, object]", value)


ALLOWED_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _empty_dict,
    "__builtin__.dict": _ordered_dict,
    "builtins.dict": _ordered_dict,
    "pytorch_lightning.utilities.parsing.AttributeDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.nn.modules.container.ParameterDict": PickledParameterDict,
    "torch.Size": _size_tuple,
    "__builtin__.set": _set,
    "builtins.set": _set,
    "_codecs.encode": _encode,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
