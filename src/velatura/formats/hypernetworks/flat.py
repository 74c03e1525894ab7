"""Hypernetworks of others as safetensors: flat keys <width>_<0 for K, 1 for V>.linear.<index>.weight, no card of ours.

No program has settled this layout. What its metadata leave out is inferred from the shapes; what shapes do not tell is
asked for, never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import inf, nextafter

from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.hypernetworks.a1111_fields import A1111_FIELDS, build_hypernetwork, check_fields, warn
from velatura.formats.load_state import load_tensors
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.tensors import Contents

TENSOR_KEY = re.compile(r"([1-9]\d{0,5})_[01]\.linear\.(\d{1,3})\.(weight|bias)")
BOOLEAN_FIELDS = {"is_layer_norm", "activate_output", "use_dropout", "last_layer_dropout"}
TEXT_FIELDS = {
    *("name", "activation_func", "weight_initialization", "sd_checkpoint", "sd_checkpoint_name", "optional_info"),
}
PYTHON_LITERALS: dict[str, object] = {"True": True, "False": False, "None": None}
NUMBER_LIST = re.compile(r"\(?([\d\s.e+-]+,[\d\s.,e+-]*\d),?\)?")  # several, in round brackets or none
MAX_NUMBER_LIST_LENGTH = 1024
MIN_NORM_WEIGHTS = 2  # a weight of shape (1,) is a PReLU's


def sniff(contents: Contents) -> bool:
    """Whether any tensor has a name of this layout."""
    return any(map(TENSOR_KEY.fullmatch, contents.tensors))


def read(contents: Contents) -> Hypernetwork:
    """Read a hypernetwork by its keys, settings and shapes, in the precision of the file."""
    name = contents.path.name
    if unknown_key := next((key for key in contents.tensors if not TENSOR_KEY.fullmatch(key)), None):
        raise BadFile(
            f"{name} holds {unknown_key[:80]!r}, which is no part of a hypernetwork: it is damaged or mixed up"
        )
    fields = {key: _parse_field(name, key, text) for key, text in contents.metadata.items() if key in A1111_FIELDS}
    check_fields(name, fields)
    widths = tuple(dict.fromkeys(int(key.partition("_")[0]) for key in contents.tensors))
    networks = {width: _weight_shapes(contents.tensors, width) for width in sorted(widths)}
    all_fields = _infer_fields(name, fields, networks)
    hypernetwork = build_hypernetwork(contents.path, all_fields, tuple(networks), len(contents.tensors))
    return load_tensors(hypernetwork, contents.tensors, name)


def _parse_field(name: str, key: str, text: str) -> object:
    """A setting: as JSON, as Python prints it (False, None, (1, 2, 1)), or, of a text, as it stands."""
    value = _parse_value(text)
    if key in TEXT_FIELDS:
        return value if value is None or isinstance(value, str) else text
    if key in BOOLEAN_FIELDS and not isinstance(value, bool | int | None):
        raise BadFile(f"{name} says {text[:40]!r} of {key}: true or false must stand there in its metadata")
    return value


def _parse_value(text: str) -> object:
    if text in PYTHON_LITERALS:
        return PYTHON_LITERALS[text]
    match = NUMBER_LIST.fullmatch(text) if len(text) <= MAX_NUMBER_LIST_LENGTH else None
    try:
        return json.loads(f"[{match[1]}]" if match else text)
    except (ValueError, RecursionError):
        return text


def _weight_shapes(tensors: Mapping[str, Tensor], width: int) -> dict[int, tuple[int, ...]]:
    """The shapes of the weights of a width's network for K, by their index in it."""
    prefix = f"{width}_0.linear."
    keys = [key for key in tensors if key.startswith(prefix) and key.endswith(".weight")]
    return dict(sorted((int(key.split(".")[2]), tuple(tensors[key].shape)) for key in keys))


def _infer_fields(
    name: str, fields: Mapping[str, object], networks: Mapping[int, dict[int, tuple[int, ...]]]
) -> dict[str, object]:
    """The fields and, for those that are missing, what the shapes say."""
    shapes_by_index = networks[max(networks)]
    norm_indices = [
        index for index, shape in shapes_by_index.items() if len(shape) == 1 and shape[0] >= MIN_NORM_WEIGHTS
    ]
    all_fields: dict[str, object] = {
        "layer_structure": _infer_layers(networks),
        "is_layer_norm": bool(norm_indices),
        **fields,
    }
    if "activation_func" not in all_fields:
        all_fields["activation_func"] = _infer_activation(name, list(shapes_by_index))
    if "activate_output" not in all_fields and all_fields["activation_func"] not in {None, "linear"}:
        all_fields["activate_output"] = True
        warn(name, "does not say whether its output is activated", "it is, as A1111 takes it; look at what it makes")
    return all_fields


def _infer_layers(networks: Mapping[int, dict[int, tuple[int, ...]]]) -> list[float]:
    """The multiples of the width that give every layer its size in every width, which is cut to a whole number."""
    sizes = [[width, *(shape[0] for shape in shapes.values() if len(shape) == 2)] for width, shapes in networks.items()]
    columns = zip(*sizes, strict=False)  # of unequal depths the rest is refused as left over
    return [max(map(_width_multiple, column, networks)) for column in columns]


def _width_multiple(size: int, width: int) -> float:
    """The least multiple of a width that gives a size once it is cut to a whole number."""
    ratio = size / width
    return ratio if int(width * ratio) == size else nextafter(ratio, inf)


def _infer_activation(name: str, indices: list[int]) -> str:
    """No activation where the indices of the weights leave no gap for one; else it could be any."""
    if indices == list(range(len(indices))):
        return "linear"
    raise BadFile(
        f"{name} does not say what its activation is, and its layers leave room for one: ask who made it, and add it "
        "to the metadata as activation_func"
    )
