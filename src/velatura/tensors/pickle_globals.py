"""Names that a torch file's pickle may refer to. They stand for plain values and descriptions of tensors.

Nothing is imported: each allowed name has its own harmless function here, and every other name is refused. Every fault
is a ValueError whose message continues "FILE ...".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch

from velatura.tensors.inert_names import InertName, is_inert
from velatura.tensors.pickle_numpy import (
    PickledNumpyArray,
    PickledNumpyType,
    array_from_buffer,
    empty_array,
    numpy_scalar,
    numpy_type,
)
from velatura.tensors.tensor_descriptions import Storage, TensorDescription, require_size

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

TENSOR_TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter"}  # arguments of _rebuild_from_type_v2, never called
MAX_KEY_PARTS = 16  # of a tuple that is a key


@dataclass(frozen=True)
class PickleGlobal:
    """A name that a pickle refers to. It is never imported."""

    text: str


class PickledOrderedDict(dict[object, object]):
    """An OrderedDict, the type of state dicts. Its attributes are dropped."""


class PickledParameterDict(dict[object, object]):
    """A ParameterDict, the type of old embeddings."""


def resolve_global(module: str, name: str) -> object:
    """Return the harmless stand-in for a name.

    Raises:
        ValueError: if the name is not on the list.
    """
    text = f"{module}.{name}"
    if module in {"torch", "torch.cuda"} and name in STORAGE_DTYPES:
        return PickleGlobal(f"torch.{name}")
    if text in TENSOR_TYPES:
        return PickleGlobal(text)
    if is_inert(module, name):
        return InertName(text)
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
    """Return the target after a pickle has set its state. A few types allow that; all others are refused."""
    if isinstance(target, PickledOrderedDict | InertName):
        return target
    if isinstance(target, PickledParameterDict):
        target.update(_require_dict(_require_dict(state).get("_parameters", {})))
        return target
    if isinstance(target, PickledNumpyType | PickledNumpyArray) and isinstance(state, tuple):
        target.set_state(cast("tuple[object, ...]", state))
        return target
    raise ValueError(f"sets attributes of a {type(target).__name__}, which weights do not need")


def check_key(value: object) -> object:
    """Return a key of a dict or an item of a set; refuse all but texts, numbers and tuples of a few of them."""
    if isinstance(value, tuple):
        parts = cast("tuple[object, ...]", value)
        if len(parts) <= MAX_KEY_PARTS and all(isinstance(part, str | bytes | int | float | None) for part in parts):
            return parts
    if not isinstance(value, str | bytes | int | float | None):
        raise ValueError(f"has a {type(cast('object', value)).__name__} as a key of a dict")
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
    return Storage(STORAGE_DTYPES[storage_type.text.removeprefix("torch.")], key, require_size(count))


def _rebuild_tensor(storage: object, offset: object, shape: object, stride: object, *_: object) -> TensorDescription:
    if not isinstance(storage, Storage):
        raise ValueError(f"has a tensor over a {type(storage).__name__}, not over a storage")
    return TensorDescription(
        storage,
        require_size(offset),
        tuple(map(require_size, _require_tuple(shape))),
        tuple(map(require_size, _require_tuple(stride))),
    )


def _rebuild_parameter(data: object, *_: object) -> TensorDescription:
    if not isinstance(data, TensorDescription):
        raise ValueError(f"has a parameter that is a {type(data).__name__}")
    return data


def _rebuild_from_type(function: object, _: object, arguments: object, *__: object) -> object:
    """Return the tensor of a subclass, or one with attributes, as a plain tensor."""
    if not isinstance(function, PickleGlobal) or not function.text.startswith("torch._utils._rebuild_"):
        raise ValueError("has a tensor that no function of torch rebuilds")
    return call_global(function, _require_tuple(arguments))


def _ordered_dict(pairs: object = (), *_: object) -> PickledOrderedDict:
    ordered = PickledOrderedDict()
    if isinstance(pairs, dict):
        ordered.update(cast("dict[object, object]", pairs))
        return ordered
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


def _list(items: object = (), *_: object) -> list[object]:
    return list(_require_list(items))


def _text(value: object = "", *_: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"has a {type(value).__name__} where torch writes a text")
    return value


def _bytes(data: object = b"", encoding: object = "latin1") -> bytes:
    return data if isinstance(data, bytes) else _encode(data, encoding)


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise ValueError("has bytes in an encoding other than latin-1")
    return text.encode("latin-1")


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
    "collections.Counter": _ordered_dict,
    "collections.deque": _list,
    "__builtin__.dict": _ordered_dict,
    "builtins.dict": _ordered_dict,
    "pytorch_lightning.utilities.parsing.AttributeDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.nn.modules.container.ParameterDict": PickledParameterDict,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size_tuple,
    "torch.torch_version.TorchVersion": _text,
    "__builtin__.set": _set,
    "builtins.set": _set,
    "__builtin__.frozenset": _set,
    "builtins.frozenset": _set,
    "__builtin__.bytes": _bytes,
    "builtins.bytes": _bytes,
    "__builtin__.bytearray": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encode,
    "numpy.dtype": numpy_type,
    "numpy.core.multiarray.scalar": numpy_scalar,
    "numpy._core.multiarray.scalar": numpy_scalar,
    "numpy.core.multiarray._reconstruct": empty_array,
    "numpy._core.multiarray._reconstruct": empty_array,
    "numpy.core.numeric._frombuffer": array_from_buffer,
    "numpy._core.numeric._frombuffer": array_from_buffer,
}
