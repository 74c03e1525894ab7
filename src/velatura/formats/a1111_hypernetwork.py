"""A1111's hypernetworks, of every era: a pickled dict of widths, each with the state dicts of its K and V networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from velatura.errors import BadFile, WrongBase
from velatura.formats.a1111_fields import described, fields_of, refuse_odd_fields, warn
from velatura.formats.fill import fill
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents, as_dict, as_list, write_torch

OLD_LAYERS = {"linear1": "linear.0", "linear2": "linear.1"}  # NovelAI's names, until 2022-10-19


def sniff(contents: Contents) -> bool:
    """Whether the file is a dict that has context widths for keys, or else A1111's names of a hypernetwork's fields."""
    payload = as_dict(contents.payload) or {}
    return any(isinstance(key, int) for key in payload) or bool({"layer_structure", "activation_func"} & payload.keys())


def read(contents: Contents) -> Hypernetwork:
    """Read a hypernetwork as A1111 does, strictly; what it ignores is warned of. Weights become float32."""
    name, payload = contents.path.name, as_dict(contents.payload) or {}
    pairs, fields = _parted(name, payload)
    tensors: dict[str, object] = {}
    for width, pair in pairs.items():
        tensors |= _flat(name, width, pair)
    hypernetwork = described(contents.path, fields, tuple(pairs), len(tensors))
    _warn_of_oddities(name, tuple(pairs), tensors.values())
    return fill(hypernetwork, tensors, name, torch.float32)


def write(overlay: Overlay, path: Path) -> None:
    """Write a hypernetwork with every field of A1111's own files, in their order."""
    if not isinstance(overlay, Hypernetwork):
        raise WrongBase(f"A1111's .pt holds hypernetworks, not a {overlay.kind}: save it as .safetensors")
    state = overlay.state_dict()
    pairs: dict[int | str, object] = {
        width: tuple(_part(state, width, part) for part in (0, 1)) for width in overlay.structure.widths
    }
    write_torch(path, {**pairs, **fields_of(overlay, path.stem)})


def _part(state: Mapping[str, torch.Tensor], width: int, part: int) -> dict[str, torch.Tensor]:
    """The state dict of one network, in its own memory."""
    prefix = f"{width}_{part}."
    return {key.removeprefix(prefix): each.cpu().clone() for key, each in state.items() if key.startswith(prefix)}


def _parted(name: str, payload: Mapping[object, object]) -> tuple[dict[int, object], dict[str, object]]:
    """The pairs of networks by their widths, and the fields; a width that is written as text does nothing in A1111."""
    pairs = {key: each for key, each in payload.items() if type(key) is int}
    texts = {key: each for key, each in payload.items() if isinstance(key, str)}
    idle = [key for key in texts if key.isdecimal()]
    if strange := [key for key in payload if type(key) is not int and not isinstance(key, str)]:
        raise BadFile(f"{name} has the key {strange[0]!r}, neither a width nor a field's name: it is damaged")
    if not pairs and idle:
        raise BadFile(f"{name} has its widths ({idle[0][:20]!r}) as text only, so it would do nothing: write numbers")
    if not pairs:
        raise BadFile(f"{name} has no context widths, so it would do nothing: it is damaged or of another kind")
    if idle:
        warn(name, f"has the width {idle[0][:20]!r} as text, not as a number", "it is ignored, as in A1111")
    fields = {key: each for key, each in texts.items() if key not in idle}
    refuse_odd_fields(name, fields)
    return pairs, fields


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


def _warn_of_oddities(name: str, widths: tuple[int, ...], tensors: Iterable[object]) -> None:
    """Warn of what no base can have, and of what torch would not write."""
    if strange := [width for width in sorted(widths) if width % 8]:
        warn(name, f"changes contexts of {', '.join(map(str, strange))} features", "no known base has such")
    starts = [each.untyped_storage().data_ptr() for each in tensors if isinstance(each, torch.Tensor) and each.numel()]
    if len(set(starts)) < len(starts):
        warn(name, "has weights that share memory", "each gets its own")
