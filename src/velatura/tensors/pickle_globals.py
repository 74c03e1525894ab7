"""What a name in a torch file's pickle may mean: a few plain values and descriptions of tensors, nothing that acts."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

NUMPY_LAYOUTS = {
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
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
DTYPE_BYTES = {
    "float32": 4,
    "float64": 8,
    "float16": 2,
    "bfloat16": 2,
    "complex64": 8,
    "complex128": 16,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
# Classes that trainers leave in checkpoints as the keys of their callbacks; here they are no more than their names.
INERT_CLASS_PREFIXES = ("pytorch_lightning.callbacks.", "lightning.pytorch.callbacks.", "main.")
MAX_DIMENSION = 2**40  # of a dimension, a stride, an offset: more than any disk holds


@dataclass(frozen=True)
class PickleGlobal:
    """A name that a pickle speaks of; nothing is imported for it."""

    text: str


@dataclass(frozen=True)
class Storage:
    """Where a file keeps count values of a dtype; its location, a device of the past, is ignored."""

    dtype: str
    key: str
    count: int

    @property
    def byte_count(self) -> int:
        """How many bytes it takes."""
        return self.count * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, eq=False)
class TensorDescription:
    """A tensor as a pickle describes it: which values of which storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class PickledOrderedDict(dict[object, object]):
    """An OrderedDict, as state dicts are; the attributes that torch gives it are dropped."""


class PickledParameterDict(dict[object, object]):
    """A ParameterDict, as old embeddings have it."""


@dataclass
class PickledNumpyType:
    """The type of a numpy scalar."""

    type_code: str
    byte_order: str = "<"


def resolve_global(module: str, name: str) -> object:
    """What a name stands for; whatever is no known one is refused."""
    text = f"{module}.{name}"
    if module in {"torch", "torch.cuda"} and name in STORAGE_DTYPES:
        return PickleGlobal(f"torch.{name}")
    if text.startswith(INERT_CLASS_PREFIXES):
        return text
    if text not in ALLOWED_CALLS:
        raise ValueError(f"names {text[:60]!r}, which no weights need")
    return PickleGlobal(text)


def call_global(name: PickleGlobal, arguments: tuple[object, ...]) -> object:
    """What a call of a name gives: a value or a description, built here."""
    if name.text not in ALLOWED_CALLS:
        raise ValueError(f"calls {name.text!r}, which is no function")
    try:
        return ALLOWED_CALLS[name.text](*arguments)
    except TypeError:
        raise ValueError(f"calls {name.text!r} with other arguments than torch gives it") from None


def set_state(target: object, state: object) -> object:
    """A target after a pickle has set its state: few are allowed to have one."""
    if isinstance(target, PickledOrderedDict):
        return target
    if isinstance(target, PickledParameterDict):
        target.update(_require_dict(_require_dict(state).get("_parameters", {})))
        return target
    if isinstance(target, PickledNumpyType) and isinstance(state, tuple):
        target.byte_order = str(cast("tuple[object, ...]", state)[1])
        return target
    raise ValueError(f"sets attributes of a {type(target).__name__}, which no weights need")


def check_key(value: object) -> object:
    """A key of a dict or item of a set: a text or a number, so that a hash of it costs nothing."""
    if not isinstance(value, str | bytes | int | float | None):
        raise ValueError(f"has a {type(value).__name__} for a key")
    return value


def module_of(persistent_id: object) -> PickleGlobal | None:
    """The class that a persistent id of torch's old form speaks of, its source beside it; None for a storage's."""
    parts = cast("tuple[object, ...]", persistent_id) if isinstance(persistent_id, tuple) else ()
    module = parts[1] if len(parts) == 4 and parts[0] == "module" else None
    return module if isinstance(module, PickleGlobal) else None


def storage_of(persistent_id: object) -> Storage:
    """The storage that a persistent id speaks of."""
    parts = _require_tuple(persistent_id)
    if len(parts) not in {5, 6} or parts[0] != "storage" or (*parts, None)[5] is not None:
        raise ValueError("has a reference to something else than a storage")
    storage_type, key, count = parts[1], parts[2], parts[4]
    if not isinstance(storage_type, PickleGlobal) or storage_type.text.removeprefix("torch.") not in STORAGE_DTYPES:
        raise ValueError("has a storage of no known type")
    if not isinstance(key, str) or not key.isdigit():
        raise ValueError(f"calls a storage {str(key)[:40]!r}, where torch counts them")
    return Storage(STORAGE_DTYPES[storage_type.text.removeprefix("torch.")], key, _require_size(count))


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> TensorDescription:
    if not isinstance(storage, Storage):
        raise ValueError(f"has a tensor in a {type(storage).__name__}, not in a storage")
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
        raise ValueError("has bytes in an encoding that pickles do not use")
    return text.encode("latin-1")


def _numpy_type(type_code: object, *_: object) -> PickledNumpyType:
    if type_code not in NUMPY_LAYOUTS:
        raise ValueError("has a number of no known type")
    return PickledNumpyType(str(type_code))


def _numpy_scalar(numpy_type: object, data: object) -> object:
    if not isinstance(numpy_type, PickledNumpyType) or not isinstance(data, bytes):
        raise ValueError("has a number of no known type")
    layout = (">" if numpy_type.byte_order == ">" else "<") + NUMPY_LAYOUTS[numpy_type.type_code]
    if struct.calcsize(layout) != len(data):
        raise ValueError("has a number of another size than its type")
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
