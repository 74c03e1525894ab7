"""Hypernetworks of other programs as safetensors, with keys such as 768_0.linear.0.weight (0 for K, 1 for V).

No program has settled this layout. Settings that the metadata leave out are inferred from the shapes; where shapes do
not tell, the file is refused with a question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import inf, nextafter

from velatura.errors import BadFile, warn
from velatura.formats.check_texts import shorten_keys
from velatura.formats.hypernetworks.a1111_fields import A1111_FIELDS, build_hypernetwork, check_fields
from velatura.formats.load_state import load_tensors, warn_of_zero_weights
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.tensors import Contents, StateDict

TENSOR_KEY = re.compile(r"([1-9]\d{0,5})_[01]\.linear\.(\d{1,3})\.(weight|bias)")
BOOLEAN_FIELDS = {"is_layer_norm", "activate_output", "use_dropout", "last_layer_dropout"}
TEXT_FIELDS = {
    "name",
    "activation_func",
    "weight_initialization",
    "sd_checkpoint",
    "sd_checkpoint_name",
    "optional_info",
}
PYTHON_LITERALS: dict[str, object] = {"True": True, "False": False, "None": None}
OTHER_METADATA = ("format", "modelspec.", "ss_", "sshs_")  # which are checked with those of other kinds
NUMBER_LIST = re.compile(r"\(?([\d\s.e+-]+,[\d\s.,e+-]*\d),?\)?")  # two or more, with or without round brackets
MAX_NUMBER_LIST_LENGTH = 1024
MIN_NORM_WEIGHTS = 2  # a PReLU has one weight, of shape (1,)

WeightShapes = Mapping[int, tuple[int, ...]]  # by the index of the layer in the network


def sniff(contents: Contents) -> bool:
    """Return True if any tensor has a name of this layout."""
    return any(map(TENSOR_KEY.fullmatch, contents.tensors))


def read(contents: Contents) -> Hypernetwork:
    """Read a hypernetwork by its keys, metadata and shapes, in the precision of the file.

    Raises:
        BadFile: A tensor does not belong to a hypernetwork, a setting cannot be read or contradicts the shapes, or
            the activation function is unknown.
    """
    name = contents.path.name
    unknown_key = next((key for key in contents.tensors if not TENSOR_KEY.fullmatch(key)), None)
    if unknown_key is not None:
        raise BadFile(
            f"{name} holds {unknown_key[:80]!r}, which is not a part of a hypernetwork: it is damaged or mixed up"
        )
    fields = {key: _parse_field(name, key, text) for key, text in contents.metadata.items() if key in A1111_FIELDS}
    check_fields(name, fields)
    unknown = [key for key in contents.metadata if key not in A1111_FIELDS and not key.startswith(OTHER_METADATA)]
    if unknown:
        warn(f"{name} has unknown fields in its metadata ({shorten_keys(unknown)}): they are ignored")
    widths = {int(key.partition("_")[0]) for key in contents.tensors}
    networks = {width: _weight_shapes(contents.tensors, width) for width in sorted(widths)}
    all_fields = _infer_fields(name, fields, networks)
    hypernetwork = build_hypernetwork(contents.path, all_fields, tuple(networks), len(contents.tensors))
    loaded = load_tensors(hypernetwork, contents.tensors, name)
    warn_of_zero_weights(name, loaded.state_dict())
    return loaded


def _parse_field(name: str, key: str, text: str) -> object:
    """Parse a setting: JSON, or as Python prints it (False, None, (1, 2, 1)); fields of text may be plain text."""
    value = _parse_value(text)
    if key in TEXT_FIELDS:
        return value if value is None or isinstance(value, str) else text
    if key in BOOLEAN_FIELDS and not isinstance(value, bool | int | None):
        raise BadFile(f"{name} has {text[:40]!r} for {key} in its metadata: write true or false there")
    return value


def _parse_value(text: str) -> object:
    if text in PYTHON_LITERALS:
        return PYTHON_LITERALS[text]
    match = NUMBER_LIST.fullmatch(text) if len(text) <= MAX_NUMBER_LIST_LENGTH else None
    try:
        return json.loads(f"[{match[1]}]" if match else text)
    except (ValueError, RecursionError):
        return text


def _weight_shapes(tensors: StateDict, width: int) -> WeightShapes:
    """Return the shapes of the weights in a width's network for K, ordered by layer."""
    prefix = f"{width}_0.linear."
    keys = [key for key in tensors if key.startswith(prefix) and key.endswith(".weight")]
    return dict(sorted((int(key.split(".")[2]), tuple(tensors[key].shape)) for key in keys))


def _infer_fields(name: str, fields: Mapping[str, object], networks: Mapping[int, WeightShapes]) -> dict[str, object]:
    """Return the fields, and for missing ones the values that the shapes tell."""
    shapes = networks[max(networks)]
    has_norms = any(len(shape) == 1 and shape[0] >= MIN_NORM_WEIGHTS for shape in shapes.values())
    all_fields: dict[str, object] = {
        "layer_structure": _infer_layers(networks),
        "is_layer_norm": has_norms,
        **fields,
    }
    if "activation_func" not in all_fields:
        all_fields["activation_func"] = _infer_activation(name, list(shapes))
    if "activate_output" not in all_fields and all_fields["activation_func"] not in {None, "linear"}:
        all_fields["activate_output"] = True
        warn(
            f"{name} does not say whether its output is activated: it is activated, as in A1111; check the pictures "
            "that it makes"
        )
    return all_fields


def _infer_layers(networks: Mapping[int, WeightShapes]) -> list[float]:
    """Return the multiples of the width that give every layer its size in every width, cut to a whole number."""
    sizes = [[width, *(shape[0] for shape in shapes.values() if len(shape) == 2)] for width, shapes in networks.items()]
    # networks of unequal depths have tensors left over, which load_tensors refuses
    layers = zip(*sizes, strict=False)
    return [max(map(_width_multiple, layer_sizes, networks)) for layer_sizes in layers]


def _width_multiple(size: int, width: int) -> float:
    """Return the least multiple of a width that gives a size when it is cut to a whole number."""
    ratio = size / width
    return ratio if int(width * ratio) == size else nextafter(ratio, inf)


def _infer_activation(name: str, indices: list[int]) -> str:
    """Return "linear" if the weights' indices leave no gap for an activation, and refuse the file otherwise."""
    if indices == list(range(len(indices))):
        return "linear"
    raise BadFile(
        f"{name} does not say what its activation is, and its layers have one: ask its author, and add it to the "
        "metadata as activation_func"
    )
