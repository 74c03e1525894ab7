"""Fields that A1111 stores beside the weights of a hypernetwork, and the card that they describe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import JsonValue

from velatura.base.families import FAMILIES
from velatura.card import MAX_STEPS, Card, printable_text
from velatura.errors import BadFile, VelaturaError, quantity, warn
from velatura.formats.load_state import check_not_empty
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.tensors import as_list

A1111_FIELDS = {
    "step",
    "name",
    "layer_structure",
    "activation_func",
    "is_layer_norm",
    "weight_initialization",
    "sd_checkpoint",
    "sd_checkpoint_name",
    "activate_output",
    "use_dropout",
    "dropout_structure",
    "last_layer_dropout",
    "optional_info",
    "enable_sizes",  # kohya's
}
STRUCTURE_FIELDS = {
    "layer_structure",
    "activation_func",
    "is_layer_norm",
    "activate_output",
    "use_dropout",
    "dropout_structure",
    "last_layer_dropout",
}
FLAG_FIELDS = {"is_layer_norm", "activate_output", "use_dropout", "last_layer_dropout"}
TEXT_FIELDS = {"sd_checkpoint", "sd_checkpoint_name", "optional_info", "weight_initialization"}
WEIGHT_INITS = {
    "Normal": "normal",
    "XavierUniform": "xavier_uniform",
    "XavierNormal": "xavier_normal",
    "KaimingUniform": "kaiming_uniform",
    "KaimingNormal": "kaiming_normal",
}
A1111_INITS = {name: a1111_name for a1111_name, name in WEIGHT_INITS.items()}
HIDDEN_DROPOUT = 0.3  # A1111's probability where use_dropout is set and the file lists none
MIN_DROPOUTS = 3  # A1111 writes three probabilities even for the two layers of 1,1
MAX_NAME_LENGTH = 128
MAX_SHOWN_FIELD_LENGTH = 40  # characters of a stranger's text in a message
MAX_SHOWN_FIELDS = 5
SAFE_PUNCTUATION = frozenset(" ._-()[]+,&'#@=")


def build_hypernetwork(
    path: Path, fields: Mapping[str, object], widths: tuple[int, ...], tensor_count: int
) -> Hypernetwork:
    """Build the hypernetwork that a file describes, without its weights (on the meta device).

    Args:
        path: The file, whose name counts where the fields have none.
        fields: A1111's fields; missing ones mean what they meant to the versions that did not write them.
        widths: Context widths, in the file's order.
        tensor_count: Number of tensors in the file.

    Raises:
        BadFile: The fields describe no hypernetwork, or one of many more layers than there are tensors.
    """
    card = _build_card(path, fields, widths)
    check_not_empty(path.name, card, tensor_count)
    try:
        return Hypernetwork.from_card(card)
    except VelaturaError as error:
        raise BadFile(f"{path.name} does not describe a hypernetwork: {error}") from None


def to_a1111_fields(hypernetwork: Hypernetwork, stem: str) -> dict[str, object]:
    """Return a hypernetwork's fields as A1111 writes them, in its order.

    Args:
        hypernetwork: The hypernetwork.
        stem: The file's name without its ending, which is the name if the card has none.
    """
    structure, card = hypernetwork.structure, hypernetwork.card
    dropout = structure.dropout or (0.0,) * len(structure.layers)
    return {
        "step": card.steps,
        "name": card.name or stem,
        # whole numbers as A1111 writes them: other programs read these as integers
        "layer_structure": [int(multiple) if multiple == int(multiple) else multiple for multiple in structure.layers],
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "weight_initialization": A1111_INITS[structure.init],
        "sd_checkpoint": card.base_hash or None,
        "sd_checkpoint_name": card.base or None,
        "activate_output": structure.activate_output,
        "use_dropout": any(dropout),
        "dropout_structure": list(dropout),
        "last_layer_dropout": dropout[-2] != 0,
        "optional_info": card.note or None,
    }


def check_fields(name: str, fields: Mapping[str, object]) -> None:
    """Refuse settings that are neither scalars nor flat lists, and warn of all fields that have no effect.

    Raises:
        BadFile: A field that the structure depends on holds an object.
    """
    for key in sorted(fields.keys() & STRUCTURE_FIELDS):
        if not _is_plain(fields[key]):
            raise BadFile(
                f"{name} has a {type(fields[key]).__name__} in the field {key!r}, which no program writes: do not "
                "trust it"
            )
    for key in sorted(fields.keys() & FLAG_FIELDS):
        if not isinstance(fields[key], bool | int | float | None):
            shown = printable_text(repr(fields[key]))[:MAX_SHOWN_FIELD_LENGTH]
            raise BadFile(f"{name} has {shown} for {key}, not True or False: it is damaged or misdescribed")
    unknown = fields.keys() - A1111_FIELDS
    if unknown:
        warn(f"{name} has unknown fields ({_shorten(unknown)}): they are ignored")
    init = fields.get("weight_initialization")
    if isinstance(init, str) and init not in WEIGHT_INITS:
        warn(
            f"{name} has an unknown weight_initialization ({_shorten([init])}): it is ignored, as its weights are here"
        )
    odd = {key for key in fields.keys() & TEXT_FIELDS if not isinstance(fields[key], str | None)}
    if odd:
        warn(f"{name} has fields that are not text ({_shorten(odd)}): they are ignored")


def _shorten(keys: Iterable[str]) -> str:
    shown = sorted(printable_text(key)[:MAX_SHOWN_FIELD_LENGTH] for key in keys)
    return ", ".join(shown[:MAX_SHOWN_FIELDS]) + (", ..." if len(shown) > MAX_SHOWN_FIELDS else "")


def _is_plain(value: object) -> bool:
    """Return True for a scalar or a flat list of scalars, which are safe to print whole."""
    scalars = (str, int, float, bool, type(None))
    items = as_list(value)
    if items:
        return all(isinstance(item, scalars) for item in items)
    return isinstance(value, scalars)


def _build_card(path: Path, fields: Mapping[str, object], widths: tuple[int, ...]) -> Card:
    return Card(
        kind=Hypernetwork.kind,
        name=_safe_name(path.name, fields.get("name"), path.stem),
        structure=_read_structure(path.name, fields, widths),
        family=_guess_family(widths),
        base=_text_or_empty(fields.get("sd_checkpoint_name")),
        base_hash=_text_or_empty(fields.get("sd_checkpoint")),
        steps=_read_steps(path.name, fields.get("step", 0)),
        note=_text_or_empty(fields.get("optional_info")),
    )


def _read_structure(name: str, fields: Mapping[str, object], widths: tuple[int, ...]) -> dict[str, JsonValue]:
    """Return the structure; a missing field means what it meant to versions of A1111 that did not write it."""
    layers = _read_numbers(name, fields, "layer_structure") if "layer_structure" in fields else [1.0, 2.0, 1.0]
    init = _text_or_empty(fields.get("weight_initialization"))
    return {
        "widths": list(widths),
        "layers": list(layers),
        "activation": _read_activation(fields.get("activation_func")),
        "layer_norm": bool(fields.get("is_layer_norm", False)),
        # A1111 has written False since 2022-10-26; older files lack the field and mean True
        "activate_output": bool(fields.get("activate_output", True)),
        "dropout": list(_read_dropout(name, fields, len(layers))),
        "init": WEIGHT_INITS.get(init, "normal"),
    }


def _read_activation(stored: object) -> str:
    if stored is None:
        return "linear"
    return stored if isinstance(stored, str) else repr(stored)


def _read_numbers(name: str, fields: Mapping[str, object], key: str) -> list[float]:
    values = as_list(fields[key])
    numbers = [value for value in values or () if isinstance(value, int | float) and not isinstance(value, bool)]
    if values is None or len(numbers) < len(values):
        raise BadFile(f"{name} has a {key} that is not a list of numbers: it is damaged")
    try:
        return [float(number) for number in numbers]
    except OverflowError:
        raise BadFile(f"{name} has a {key} with a number too large for a float: it is damaged") from None


def _read_dropout(name: str, fields: Mapping[str, object], layer_count: int) -> list[float]:
    """Return the dropout after every layer, by A1111's rule for files from before 2023-01-10, which do not list it."""
    if fields.get("dropout_structure") is not None:
        probabilities = _read_numbers(name, fields, "dropout_structure")
        if len(probabilities) > max(layer_count, MIN_DROPOUTS):
            warn(
                f"{name} has {len(probabilities)} dropout probabilities for {quantity(layer_count, 'layer')}: the "
                "last ones are ignored, as in A1111"
            )
        return probabilities[:layer_count]
    if not fields.get("use_dropout", False):
        return [0.0] * layer_count
    last_dropout = HIDDEN_DROPOUT if fields.get("last_layer_dropout", False) else 0.0
    return [0.0, *[HIDDEN_DROPOUT] * (layer_count - 3), last_dropout, 0.0][:layer_count]


def _safe_name(file_name: str, stored: object, stem: str) -> str:
    """Return the name inside a file, made safe to show and to name files with, or the file's stem if it has none."""
    if stored is None or stored == "":
        return stem
    text = stored if isinstance(stored, str) else ""
    letters = (letter if letter.isalnum() or letter in SAFE_PUNCTUATION else "_" for letter in text)
    safe = "".join(letters)[:MAX_NAME_LENGTH]
    if safe == stored:
        return safe
    name = safe.strip("._ ") or stem
    warn(f"{file_name} has a name inside with characters that a name cannot have: {name} is used instead")
    return name


def _read_steps(file_name: str, stored: object) -> int:
    if stored is None:
        return 0
    if type(stored) is int and 0 <= stored < MAX_STEPS:
        return stored
    warn(f"{file_name} has a step count that is not a whole number of 0 or more: 0 is used instead")
    return 0


def _text_or_empty(stored: object) -> str:
    return stored if isinstance(stored, str) else ""


def _guess_family(widths: tuple[int, ...]) -> str:
    """Return the only family that has these widths, or "" if there is none or several."""
    names = [
        family.name for family in FAMILIES.values() if family.cross_width in widths and family.widths >= set(widths)
    ]
    return names[0] if len(names) == 1 else ""
