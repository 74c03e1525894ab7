"""A1111's hypernetworks, of every era: a pickled dict of widths, each with the state dicts of its K and V networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from velatura.errors import BadFile, WrongBase
from velatura.formats.hypernetworks.a1111_fields import build_hypernetwork, check_fields, to_a1111_fields, warn
from velatura.formats.load_state import load_tensors
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents, as_dict, as_list, write_torch

NOVELAI_LAYERS = {"linear1": "linear.0", "linear2": "linear.1"}  # NovelAI's names, until 2022-10-19


def sniff(contents: Contents) -> bool:
    """Whether the file is a dict that has context widths for keys, or else A1111's names of a hypernetwork's fields."""
    payload = as_dict(contents.payload) or {}
    return any(isinstance(key, int) for key in payload) or bool({"layer_structure", "activation_func"} & payload.keys())


def read(contents: Contents) -> Hypernetwork:
    """Read a hypernetwork as A1111 does, strictly; what it ignores is warned of. Weights become float32."""
    name, payload = contents.path.name, as_dict(contents.payload) or {}
    pairs, fields = _split_payload(name, payload)
    tensors: dict[str, object] = {}
    for width, pair in pairs.items():
        tensors |= _flatten_pair(name, width, pair)
    hypernetwork = build_hypernetwork(contents.path, fields, tuple(pairs), len(tensors))
    _warn_of_suspicious_weights(name, tuple(pairs), tensors.values())
    return load_tensors(hypernetwork, tensors, name, torch.float32)


def write(overlay: Overlay, path: Path) -> None:
    """Write a hypernetwork with every field of A1111's own files, in their order."""
    if not isinstance(overlay, Hypernetwork):
        raise WrongBase(f"A1111's .pt holds hypernetworks, not a {overlay.kind}: save it as .safetensors")
    state = overlay.state_dict()
    pairs: dict[int | str, object] = {
        width: tuple(_network_state(state, width, network_index) for network_index in (0, 1))
        for width in overlay.structure.widths
    }
    write_torch(path, {**pairs, **to_a1111_fields(overlay, path.stem)})


def _network_state(state: Mapping[str, torch.Tensor], width: int, network_index: int) -> dict[str, torch.Tensor]:
    """The state dict of one network, in its own memory."""
    prefix = f"{width}_{network_index}."
    return {key.removeprefix(prefix): tensor.cpu().clone() for key, tensor in state.items() if key.startswith(prefix)}


def _split_payload(name: str, payload: Mapping[object, object]) -> tuple[dict[int, object], dict[str, object]]:
    """The pairs of networks by their widths, and the fields; a width that is written as text does nothing in A1111."""
    pairs = {key: value for key, value in payload.items() if type(key) is int}
    texts = {key: value for key, value in payload.items() if isinstance(key, str)}
    text_widths = [key for key in texts if key.isdecimal()]
    if bad_keys := [key for key in payload if type(key) is not int and not isinstance(key, str)]:
        raise BadFile(f"{name} has the key {bad_keys[0]!r}, neither a width nor a field's name: it is damaged")
    if not pairs and text_widths:
        raise BadFile(
            f"{name} has its widths ({text_widths[0][:20]!r}) as text only, so it would do nothing: write numbers"
        )
    if not pairs:
        raise BadFile(f"{name} has no context widths, so it would do nothing: it is damaged or of another kind")
    if text_widths:
        warn(name, f"has the width {text_widths[0][:20]!r} as text, not as a number", "it is ignored, as in A1111")
    fields = {key: value for key, value in texts.items() if key not in text_widths}
    check_fields(name, fields)
    return pairs, fields


def _flatten_pair(name: str, width: int, pair: object) -> dict[str, object]:
    """The two state dicts of a width under our own keys."""
    states = [as_dict(network) for network in as_list(pair) or ()]
    if len(states) != 2 or None in states:
        raise BadFile(f"{name} has no pair of networks for K and V under width {width}: it is cut short or damaged")
    tensors: dict[str, object] = {}
    for network_index, state in enumerate(states):
        for key, tensor in (state or {}).items():
            layer, _, rest = str(key).partition(".")
            tensors[f"{width}_{network_index}.{NOVELAI_LAYERS.get(layer, layer)}.{rest}"] = tensor
    return tensors


def _warn_of_suspicious_weights(name: str, widths: tuple[int, ...], tensors: Iterable[object]) -> None:
    """Warn of what no base can have, and of what torch would not write."""
    if odd_widths := [width for width in sorted(widths) if width % 8]:
        warn(name, f"changes contexts of {', '.join(map(str, odd_widths))} features", "no known base has such")
    addresses = [
        tensor.untyped_storage().data_ptr() for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.numel()
    ]
    if len(set(addresses)) < len(addresses):
        warn(name, "has weights that share memory", "each gets its own")
