"""A1111's hypernetworks, of every era: a pickled dict of widths, each with the state dicts of its K and V networks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from pydantic import JsonValue

from velatura.base.families import FAMILIES
from velatura.errors import BadFile, VelaturaError, VelaturaWarning, WrongBase
from velatura.formats.fill import fill
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Card, Overlay
from velatura.tensors import Contents, as_dict, as_list, write_torch

KNOWN = {
    *("step", "name", "layer_structure", "activation_func", "is_layer_norm", "weight_initialization", "sd_checkpoint"),
    *(
        "sd_checkpoint_name",
        "activate_output",
        "use_dropout",
        "dropout_structure",
        "last_layer_dropout",
        "optional_info",
    ),
    "enable_sizes",  # kohya's
}
INITS = {
    "Normal": "normal",
    "XavierUniform": "xavier_uniform",
    "XavierNormal": "xavier_normal",
    "KaimingUniform": "kaiming_uniform",
    "KaimingNormal": "kaiming_normal",
}
OLD_LAYERS = {"linear1": "linear.0", "linear2": "linear.1"}  # NovelAI's names, until 2022-10-19
HIDDEN_DROPOUT = 0.3  # where use_dropout is set and no probabilities are in the file
LONGEST_NAME = 128


def sniff(contents: Contents) -> bool:
    """Whether the file is a dict that has context widths for keys, or else A1111's names of a hypernetwork's fields."""
    payload = as_dict(contents.payload) or {}
    return any(isinstance(key, int) for key in payload) or bool({"layer_structure", "activation_func"} & payload.keys())


def read(contents: Contents) -> Hypernetwork:
    """Read a hypernetwork as A1111 does, strictly; what it ignores is warned of. Weights become float32."""
    name, payload = contents.path.name, as_dict(contents.payload) or {}
    _refuse_other_keys(name, payload)
    pairs = {key: each for key, each in payload.items() if type(key) is int}
    fields = {key: each for key, each in payload.items() if isinstance(key, str)}
    if not pairs:
        raise BadFile(
            f"{name} holds no context widths as whole numbers, so it would do nothing: it is damaged or another kind"
        )
    tensors: dict[str, object] = {}
    for width, pair in pairs.items():
        tensors |= _flat(name, width, pair)
    try:
        hypernetwork = Hypernetwork.from_card(_card(contents.path, fields, tuple(pairs)))
    except BadFile:
        raise
    except VelaturaError as error:
        raise BadFile(f"{name} describes no hypernetwork: {error}") from None
    _warn_of_oddities(name, tuple(pairs), tensors.values())
    return fill(hypernetwork, tensors, name, torch.float32)


def write(overlay: Overlay, path: Path) -> None:
    """Write a hypernetwork with every field of A1111's own files, in their order."""
    if not isinstance(overlay, Hypernetwork):
        raise WrongBase(f"A1111's .pt holds hypernetworks, not a {overlay.kind}: save it as .safetensors")
    state, structure, card = overlay.state_dict(), overlay.structure, overlay.card
    payload: dict[int | str, object] = {
        width: tuple(_part(state, width, part) for part in (0, 1)) for width in structure.widths
    }
    dropout = structure.dropout or (0.0,) * len(structure.layers)
    payload |= {
        "step": card.steps,
        "name": card.name or path.stem,
        "layer_structure": list(structure.layers),
        "activation_func": structure.activation,
        "is_layer_norm": structure.layer_norm,
        "weight_initialization": {ours: theirs for theirs, ours in INITS.items()}[structure.init],
        "sd_checkpoint": card.base_hash or None,
        "sd_checkpoint_name": card.base or None,
        "activate_output": structure.activate_output,
        "use_dropout": any(dropout),
        "dropout_structure": list(dropout),
        "last_layer_dropout": dropout[-2] != 0,
        "optional_info": card.note or None,
    }
    write_torch(path, payload)


def _part(state: Mapping[str, torch.Tensor], width: int, part: int) -> dict[str, torch.Tensor]:
    """The state dict of one network, in its own memory."""
    prefix = f"{width}_{part}."
    return {key.removeprefix(prefix): each.cpu().clone() for key, each in state.items() if key.startswith(prefix)}


def _refuse_other_keys(name: str, payload: Mapping[object, object]) -> None:
    for key, value in payload.items():
        if type(key) is not int and not isinstance(key, str):
            raise BadFile(f"{name} has the key {key!r}, neither a width nor a field's name: it is damaged")
        if isinstance(key, str) and key.isdigit():
            raise BadFile(f"{name} has the width {key[:20]!r} as text, where it would be ignored: write it as a number")
        if isinstance(key, str) and not _is_plain(value):
            raise BadFile(
                f"{name} has a {type(value).__name__} in the field {key[:40]!r}: no such file does, do not trust it"
            )
    if unknown := sorted(key[:40] for key in payload if isinstance(key, str) and key not in KNOWN):
        _warn(name, f"has unknown fields ({', '.join(unknown[:5])})", "they are ignored")


def _is_plain(value: object) -> bool:
    """Whether a value is a scalar or a flat list of them, safe to print whole."""
    scalars = (str, int, float, bool, type(None))
    return isinstance(value, scalars) or all(isinstance(each, scalars) for each in as_list(value) or [None, value])


def _flat(name: str, width: int, pair: object) -> dict[str, object]:
    """The two state dicts of a width under our own keys."""
    states = [as_dict(each) for each in as_list(pair) or ()]
    if len(states) != 2 or None in states:
        raise BadFile(f"{name} has no pair of networks for K and V under width {width}: it is cut short or damaged")
    tensors: dict[str, object] = {}
    for part, state in enumerate(states):
        for key, tensor in (state or {}).items():
            layer, _, rest = str(key).partition(".")
            tensors[f"{width}_{part}.{OLD_LAYERS.get(layer, layer)}.{rest}"] = tensor
    return tensors


def _card(path: Path, fields: Mapping[str, object], widths: tuple[int, ...]) -> Card:
    """The card that a file's fields amount to, each missing one as in the era of files without it."""
    name = path.name
    layers = _numbers(name, fields, "layer_structure") if "layer_structure" in fields else [1.0, 2.0, 1.0]
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
        "dropout": list(_dropout(name, fields, len(layers))),
        "init": INITS.get(init, "normal") if isinstance(init, str) else "normal",
    }
    return Card(
        kind=Hypernetwork.kind,
        name=_name(name, fields.get("name"), path.stem),
        structure=structure,
        family=_family(widths),
        base=_text(fields.get("sd_checkpoint_name")),
        base_hash=_text(fields.get("sd_checkpoint")),
        steps=_steps(name, fields.get("step", 0)),
        note=_text(fields.get("optional_info")),
    )


def _numbers(name: str, fields: Mapping[str, object], key: str) -> list[float]:
    values = as_list(fields[key])
    numbers = [each for each in values or () if isinstance(each, int | float) and not isinstance(each, bool)]
    if values is None or len(numbers) < len(values):
        raise BadFile(f"{name} has a {key} that is no list of numbers: it is damaged")
    try:
        return [float(each) for each in numbers]
    except OverflowError:
        raise BadFile(f"{name} has a {key} beyond all measure: it is damaged") from None


def _dropout(name: str, fields: Mapping[str, object], count: int) -> list[float]:
    """The dropout after each layer, derived as A1111 does where the file, older than 2023-01-10, gives none."""
    if fields.get("dropout_structure") is not None:
        given = _numbers(name, fields, "dropout_structure")
        # A1111 itself writes three entries for the two layers of 1,1 and reads the first two
        return given[:2] if (count, len(given)) == (2, 3) else given
    if not fields.get("use_dropout", False):
        return [0.0] * count
    last = HIDDEN_DROPOUT if fields.get("last_layer_dropout", False) else 0.0
    return [0.0, *[HIDDEN_DROPOUT] * (count - 3), last, 0.0][:count]


def _name(file: str, stored: object, stem: str) -> str:
    """The name stored in a file, made safe to show and to use as a file's; the file's own where there is none."""
    if stored is None:
        return stem
    text = stored if isinstance(stored, str) else ""
    safe = "".join(each if each.isalnum() or each in " ._-()[]+,&'#@=" else "_" for each in text)[:LONGEST_NAME]
    if safe == stored:
        return safe
    _warn(file, "has a name that no overlay can have", f"it is called {safe.strip('._ ') or stem} here")
    return safe.strip("._ ") or stem


def _steps(file: str, stored: object) -> int:
    if stored is None:
        return 0
    if type(stored) is int and 0 <= stored < 2**53:
        return stored
    _warn(file, "has a count of steps that cannot be", "0 is taken")
    return 0


def _text(stored: object) -> str:
    return stored if isinstance(stored, str) else ""


def _family(widths: tuple[int, ...]) -> str:
    """The family that these widths belong to, where they leave no doubt."""
    fitting = [each.name for each in FAMILIES.values() if each.cross_width in widths and each.widths >= set(widths)]
    return fitting[0] if len(fitting) == 1 else ""


def _warn_of_oddities(name: str, widths: tuple[int, ...], tensors: Iterable[object]) -> None:
    """Warn of what no base can have, and of what torch would not write."""
    if strange := [width for width in sorted(widths) if width % 8]:
        _warn(name, f"changes contexts of {', '.join(map(str, strange))} features", "no known base has such")
    starts = [each.untyped_storage().data_ptr() for each in tensors if isinstance(each, torch.Tensor) and each.numel()]
    if len(set(starts)) < len(starts):
        _warn(name, "has weights that share memory", "each gets its own")


def _warn(name: str, what: str, outcome: str) -> None:
    warnings.warn(f"{name} {what}: {outcome}", VelaturaWarning, stacklevel=2)
