"""The fields that A1111 keeps in a hypernetwork's file, and the card that they amount to."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from velatura.base.families import FAMILIES
from velatura.errors import BadFile, VelaturaError, VelaturaWarning
from velatura.formats.load_state import check_not_empty
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Card
from velatura.tensors import as_list

A1111_FIELDS = {
    *("step", "name", "layer_structure", "activation_func", "is_layer_norm", "weight_initialization", "sd_checkpoint"),
    *("sd_checkpoint_name", "activate_output", "use_dropout", "dropout_structure", "last_layer_dropout"),
    *("optional_info", "enable_sizes"),  # the last is kohya's
}
WEIGHT_INITS = {
    "Normal": "normal",
    "XavierUniform": "xavier_uniform",
    "XavierNormal": "xavier_normal",
    "KaimingUniform": "kaiming_uniform",
    "KaimingNormal": "kaiming_normal",
}
HIDDEN_DROPOUT = 0.3  # where use_dropout is set and no probabilities are in the file
MAX_NAME_LENGTH = 128


def build_hypernetwork(
    path: Path, fields: Mapping[str, object], widths: tuple[int, ...], tensor_count: int
) -> Hypernetwork:
    """The hypernetwork that the fields and widths of a file of so many tensors describe, on the meta device."""
    card = _build_card(path, fields, widths)
    check_not_empty(path.name, card, tensor_count)
    try:
        return Hypernetwork.from_card(card)
    except VelaturaError as error:
        raise BadFile(f"{path.name} describes no hypernetwork: {error}") from None


def to_a1111_fields(hypernetwork: Hypernetwork, stem: str) -> dict[str, object]:
    """A hypernetwork's fields as A1111 writes them, in its order; stem is the file's name without its ending."""
    structure, card = hypernetwork.structure, hypernetwork.card
    dropout = structure.dropout or (0.0,) * len(structure.layers)
    return {
        "step": card.steps,
        "name": card.name or stem,
        "layer_structure": list(structure.layers),
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "weight_initialization": {name: a1111_name for a1111_name, name in WEIGHT_INITS.items()}[structure.init],
        "sd_checkpoint": card.base_hash or None,
        "sd_checkpoint_name": card.base or None,
        "activate_output": structure.activate_output,
        "use_dropout": any(dropout),
        "dropout_structure": list(dropout),
        "last_layer_dropout": dropout[-2] != 0,
        "optional_info": card.note or None,
    }


def check_fields(name: str, fields: Mapping[str, object]) -> None:
    """Refuse fields that are no scalars or flat lists; warn of those that A1111 does not know."""
    for key, value in fields.items():
        if not _is_plain(value):
            problem = f"a {type(value).__name__} in the field {key[:40]!r}"
            raise BadFile(f"{name} has {problem}: no such file does, do not trust it")
    if unknown := sorted(key[:40] for key in fields.keys() - A1111_FIELDS):
        warn(name, f"has unknown fields ({', '.join(unknown[:5])})", "they are ignored")


def warn(name: str, problem: str, outcome: str) -> None:
    """Warn of something in the file of that name."""
    warnings.warn(f"{name} {problem}: {outcome}", VelaturaWarning, stacklevel=2)


def _is_plain(value: object) -> bool:
    """Whether a value is a scalar or a flat list of them, safe to print whole."""
    scalars = (str, int, float, bool, type(None))
    return isinstance(value, scalars) or all(isinstance(item, scalars) for item in as_list(value) or [None, value])


def _build_card(path: Path, fields: Mapping[str, object], widths: tuple[int, ...]) -> Card:
    """The card that a file's fields amount to, each missing one as in the era of files without it."""
    name = path.name
    layers = _read_numbers(name, fields, "layer_structure") if "layer_structure" in fields else [1.0, 2.0, 1.0]
    activation = fields.get("activation_func")
    init = fields.get("weight_initialization")
    structure: dict[str, JsonValue] = {
        "widths": list(widths),
        "layers": list(layers),
        "activation": "linear"
        if activation is None
        else activation
        if isinstance(activation, str)
        else repr(activation),
        "layer_norm": bool(fields.get("is_layer_norm", False)),
        # new files say False; those from before 2022-10-26 say nothing and mean True
        "activate_output": bool(fields.get("activate_output", True)),
        "dropout": list(_read_dropout(name, fields, len(layers))),
        "init": WEIGHT_INITS.get(init, "normal") if isinstance(init, str) else "normal",
    }
    return Card(
        kind=Hypernetwork.kind,
        name=_safe_name(name, fields.get("name"), path.stem),
        structure=structure,
        family=_guess_family(widths),
        base=_text_or_empty(fields.get("sd_checkpoint_name")),
        base_hash=_text_or_empty(fields.get("sd_checkpoint")),
        steps=_read_steps(name, fields.get("step", 0)),
        note=_text_or_empty(fields.get("optional_info")),
    )


def _read_numbers(name: str, fields: Mapping[str, object], key: str) -> list[float]:
    values = as_list(fields[key])
    numbers = [value for value in values or () if isinstance(value, int | float) and not isinstance(value, bool)]
    if values is None or len(numbers) < len(values):
        raise BadFile(f"{name} has a {key} that is no list of numbers: it is damaged")
    try:
        return [float(number) for number in numbers]
    except OverflowError:
        raise BadFile(f"{name} has a {key} beyond all measure: it is damaged") from None


def _read_dropout(name: str, fields: Mapping[str, object], layer_count: int) -> list[float]:
    """The dropout after each layer, derived as A1111 does where the file, older than 2023-01-10, gives none."""
    if fields.get("dropout_structure") is not None:
        probabilities = _read_numbers(name, fields, "dropout_structure")
        # A1111 itself writes three entries for the two layers of 1,1; of longer lists it reads the first ones
        if len(probabilities) > max(layer_count, 3):
            warn(
                name, f"has {len(probabilities)} dropout probabilities for {layer_count} layers", "the last are ignored"
            )
        return probabilities[:layer_count]
    if not fields.get("use_dropout", False):
        return [0.0] * layer_count
    last_dropout = HIDDEN_DROPOUT if fields.get("last_layer_dropout", False) else 0.0
    return [0.0, *[HIDDEN_DROPOUT] * (layer_count - 3), last_dropout, 0.0][:layer_count]


def _safe_name(file_name: str, stored: object, stem: str) -> str:
    """The name stored in a file, made safe to show and to use as a file's; the file's own where there is none."""
    if stored is None:
        return stem
    text = stored if isinstance(stored, str) else ""
    safe = "".join(letter if letter.isalnum() or letter in " ._-()[]+,&'#@=" else "_" for letter in text)[
        :MAX_NAME_LENGTH
    ]
    if safe == stored:
        return safe
    warn(file_name, "has a name that no overlay can have", f"it is called {safe.strip('._ ') or stem} here")
    return safe.strip("._ ") or stem


def _read_steps(file_name: str, stored: object) -> int:
    if stored is None:
        return 0
    if type(stored) is int and 0 <= stored < 2**53:
        return stored
    warn(file_name, "has a count of steps that cannot be", "0 is taken")
    return 0


def _text_or_empty(stored: object) -> str:
    return stored if isinstance(stored, str) else ""


def _guess_family(widths: tuple[int, ...]) -> str:
    """The family that these widths belong to, where they leave no doubt."""
    names = [
        family.name for family in FAMILIES.values() if family.cross_width in widths and family.widths >= set(widths)
    ]
    return names[0] if len(names) == 1 else ""
