"""A1111's hypernetworks of every version: a pickled dict with the state dicts of the K and V networks by width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from velatura.errors import BadFile, WrongBase, warn
from velatura.formats.hypernetworks.a1111_fields import build_hypernetwork, check_fields, to_a1111_fields
from velatura.formats.load_state import load_tensors, warn_of_zero_weights
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay
from velatura.tensors import Contents, StateDict, as_dict, as_list, write_torch

NOVELAI_LAYERS = {"linear1": "linear.0", "linear2": "linear.1"}  # NovelAI's names, which A1111 read until 2022-10-19
WIDTH_MULTIPLE = 8  # every context width of a Stable Diffusion is a multiple of it
MAX_SHOWN_WIDTH_LENGTH = 20  # characters of a stranger's text in a message


def sniff(contents: Contents) -> bool:
    """Return True for a dict with context widths for keys, or with A1111's names of a hypernetwork's fields."""
    payload = as_dict(contents.payload) or {}
    return any(isinstance(key, int) for key in payload) or bool({"layer_structure", "activation_func"} & payload.keys())


def read(contents: Contents) -> Hypernetwork:
    """Read a hypernetwork as A1111 does, with weights in float32.

    Warns of everything in the file that A1111 ignores.

    Raises:
        BadFile: A network is missing, or fields and weights do not fit each other.
    """
    name, payload = contents.path.name, as_dict(contents.payload) or {}
    pairs, fields = _split_payload(name, payload)
    tensors: dict[str, object] = {}
    for width, pair in pairs.items():
        tensors |= _flatten_pair(name, width, pair)
    hypernetwork = build_hypernetwork(contents.path, fields, tuple(pairs), len(tensors))
    _warn_of_suspicious_weights(name, tuple(pairs), tensors.values())
    loaded = load_tensors(hypernetwork, tensors, name, torch.float32)
    warn_of_zero_weights(name, loaded.state_dict())
    return loaded


def write(overlay: Overlay, path: Path) -> None:
    """Write a hypernetwork with every field of A1111's own files, in their order.

    Raises:
        WrongBase: The overlay is not a hypernetwork.
        BadFile: The file cannot be written.
    """
    if not isinstance(overlay, Hypernetwork):
        raise WrongBase(f"a .pt of A1111 stores hypernetworks, not a {overlay.kind}: save it as .safetensors")
    state = overlay.state_dict()
    pairs: dict[int | str, object] = {
        width: (_network_state(state, width, 0), _network_state(state, width, 1)) for width in overlay.structure.widths
    }
    write_torch(path, {**pairs, **to_a1111_fields(overlay, path.stem)})


def _network_state(state: StateDict, width: int, network_index: int) -> dict[str, Tensor]:
    """Return the state dict of one network, 0 for K and 1 for V, in memory of its own."""
    prefix = f"{width}_{network_index}."
    return {key.removeprefix(prefix): tensor.cpu().clone() for key, tensor in state.items() if key.startswith(prefix)}


def _split_payload(name: str, payload: Mapping[object, object]) -> tuple[dict[int, object], dict[str, object]]:
    """Split a file's dict into pairs of networks by width, and fields; A1111 ignores widths that are text."""
    pairs = {key: value for key, value in payload.items() if type(key) is int}
    texts = {key: value for key, value in payload.items() if isinstance(key, str)}
    bad_keys = [key for key in payload if type(key) is not int and not isinstance(key, str)]
    if bad_keys:
        raise BadFile(f"{name} has the key {bad_keys[0]!r}, neither a width nor the name of a field: it is damaged")
    text_widths = [key for key in texts if key.isdecimal()]
    _check_widths(name, has_widths=bool(pairs), text_widths=[key[:MAX_SHOWN_WIDTH_LENGTH] for key in text_widths])
    fields = {key: value for key, value in texts.items() if key not in text_widths}
    check_fields(name, fields)
    return pairs, fields


def _check_widths(name: str, *, has_widths: bool, text_widths: list[str]) -> None:
    """Refuse a file without widths as numbers, and warn of widths that are text."""
    if not has_widths and text_widths:
        raise BadFile(f"{name} has its widths ({text_widths[0]!r}) as text only, so it has no effect: write numbers")
    if not has_widths:
        raise BadFile(f"{name} has no context widths, so it has no effect: it is damaged or of another kind")
    if text_widths:
        warn(f"{name} has the width {text_widths[0]!r} as text, not as a number: it is ignored, as in A1111")


def _flatten_pair(name: str, width: int, pair: object) -> dict[str, object]:
    """Return the tensors of a width's two networks under velatura's keys."""
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
    """Warn of widths that no base has, and of shared memory, which torch.save of a trained network does not write."""
    odd_widths = [width for width in sorted(widths) if width % WIDTH_MULTIPLE]
    if odd_widths:
        listed = ", ".join(map(str, odd_widths))
        warn(f"{name} changes contexts of {listed} features: no known base has such contexts")
    addresses = [
        tensor.untyped_storage().data_ptr() for tensor in tensors if isinstance(tensor, Tensor) and tensor.numel()
    ]
    if len(set(addresses)) < len(addresses):
        warn(f"{name} has weights that share memory: they are copied, so that training changes them one by one")
