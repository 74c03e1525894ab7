"""A1111's optimizer files: beside inca.pt lies inca.pt.optim, with the hash of inca.pt and a state to train on from."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from velatura.errors import BadFile, UnknownName, VelaturaWarning
from velatura.files import open_for_reading
from velatura.formats.hypernetworks import a1111
from velatura.tensors import StrPath, as_dict, as_list, open_tensors, write_torch

OPTIM_SUFFIX = ".optim"
DEFAULT_OPTIMIZER = "AdamW"
SHORT_HASH_LENGTH = 10
OLD_HASH_LENGTH = 8  # until January 2023
OLD_HASH_START, OLD_HASH_BYTES = 0x100000, 0x10000  # what the old hash is made of, whatever else the file holds
SQUARED_MOMENTS = {"exp_avg_sq", "max_exp_avg_sq", "sum", "square_avg", "acc_delta", "exp_inf"}  # never below zero
MOMENTS = {
    *SQUARED_MOMENTS,
    "exp_avg",
    "momentum_buffer",
    "grad_avg",
    "prev",
    "ax",
}  # one value for each of a parameter's
OPTIMIZER_NAMES = sorted(name for name in torch.optim.__all__ if name[0].isupper() and name != "Optimizer")


@dataclass(frozen=True)
class OptimState:
    """Where a training stopped: the optimizer's name, as torch calls it, and what its state_dict held.

    The learning rate in it is that of the last step: a training that goes on sets its own.
    """

    name: str
    state: dict[str, object]


def read_optim(path: StrPath) -> OptimState | None:
    """Read what lies beside a .pt; None where nothing does, or, with a warning, where it belongs to other weights."""
    path = Path(path)
    optim_path = path.with_name(path.name + OPTIM_SUFFIX)
    if not optim_path.exists():
        return None
    name, stored_hash, state = _read_payload(optim_path)
    if not _is_hash_of(path, stored_hash):
        message = f"{optim_path.name} belongs to other weights than {path.name}: training starts with a fresh optimizer"
        warnings.warn(message, VelaturaWarning, stacklevel=2)
        return None
    _check_shapes(optim_path, state, _parameter_shapes(path))
    return OptimState(name, state)


def write_optim(path: StrPath, name: str, state: Mapping[str, object], digest: str | None = None) -> None:
    """Write an optimizer's state beside the .pt that it belongs to, bound to the bytes that lie there now.

    digest: what it is bound by instead, as embeddings are by their checksum.
    """
    path = Path(path)
    if name not in OPTIMIZER_NAMES:
        raise UnknownName.with_suggestions("optimizer", name, OPTIMIZER_NAMES)
    payload = {"optimizer_name": name, "hash": digest or short_hash(path), "optimizer_state_dict": dict(state)}
    write_torch(path.with_name(path.name + OPTIM_SUFFIX), payload)


def short_hash(path: Path) -> str:
    """The hash by which A1111 shows and matches hypernetworks: ten hex digits of the whole file's SHA-256."""
    with open_for_reading(path) as file:
        return file_digest(file, "sha256").hexdigest()[:SHORT_HASH_LENGTH]


def _parameter_shapes(path: Path) -> list[tuple[int, ...]]:
    """The shapes of a hypernetwork's parameters, in the order in which A1111 gives them to an optimizer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VelaturaWarning)  # whoever opens the file itself is warned of it
        return [tuple(parameter.shape) for parameter in a1111.read(open_tensors(path)).parameters()]


def _is_hash_of(path: Path, stored_hash: str) -> bool:
    """Whether a hash, of either length that A1111 has written, is this file's."""
    if len(stored_hash) != OLD_HASH_LENGTH:
        return stored_hash == short_hash(path)
    with open_for_reading(path) as file:
        file.seek(OLD_HASH_START)
        window = file.read(OLD_HASH_BYTES)
    return (
        bool(window) and sha256(window).hexdigest()[:OLD_HASH_LENGTH] == stored_hash
    )  # of small files it tells nothing


def _read_payload(path: Path) -> tuple[str, str, dict[str, object]]:
    """The name, hash and state in a file, all that can be told without the weights checked."""
    payload = as_dict(open_tensors(path).payload)
    if payload is None or not {"hash", "optimizer_state_dict"} <= payload.keys():
        raise BadFile(f"{path.name} holds no optimizer's state and hash: delete it, and training starts afresh")
    name, stored_hash = payload.get("optimizer_name", DEFAULT_OPTIMIZER), payload["hash"]
    if name not in OPTIMIZER_NAMES:
        raise BadFile(f"{path.name} is of the optimizer {str(name)[:40]!r}, which torch does not have: delete it")
    state = _check_state(path.name, payload["optimizer_state_dict"])
    if not isinstance(stored_hash, str):
        raise BadFile(f"{path.name} does not say which weights it belongs to: delete it, and training starts afresh")
    return str(name), stored_hash, state


def _check_state(name: str, stored: object) -> dict[str, object]:
    fields = as_dict(stored) or {}
    states, groups = as_dict(fields.get("state")), as_list(fields.get("param_groups"))
    if fields.keys() != {"state", "param_groups"} or states is None or not groups:
        raise BadFile(f"{name} holds no state and groups of parameters as torch's optimizers do: delete it")
    indices = [index for group in groups for index in _parameter_indices(name, group)]
    if indices != list(range(len(indices))) or not states.keys() <= set(indices):
        raise BadFile(f"{name} does not count its parameters one by one: delete it, and training starts afresh")
    for index, state in states.items():
        _check_parameter_state(name, index, as_dict(state))
    return {"state": states, "param_groups": groups}


def _parameter_indices(name: str, group: object) -> list[object]:
    """The parameters of a group, whose settings are finite numbers, texts or nothing."""
    fields = as_dict(group) or {}
    for key, value in fields.items():
        settings = as_list(value) or [value]
        if not all(isinstance(setting, str | None) or _is_finite(setting) for setting in settings):
            raise BadFile(f"{name} has a setting {str(key)[:40]!r} that is no finite number: delete it")
    return as_list(fields.get("params")) or []


def _check_parameter_state(name: str, index: object, state: Mapping[object, object] | None) -> None:
    """Refuse what no optimizer remembers of a parameter."""
    if state is None:
        raise BadFile(f"{name} has no state for its parameter {index}: delete it, and training starts afresh")
    for key, value in state.items():
        if value is not None and not _is_finite(value):
            raise BadFile(f"{name} has {key} of parameter {index} with values that are not finite: delete it")
        if (
            key in {*SQUARED_MOMENTS, "step"}
            and isinstance(value, Tensor | int | float)
            and bool((torch.as_tensor(value) < 0).any())
        ):
            raise BadFile(f"{name} has {key} of parameter {index} below zero, which cannot be: delete it")
    shapes = {tuple(tensor.shape) for key, tensor in state.items() if key in MOMENTS and isinstance(tensor, Tensor)}
    if len(shapes) > 1:
        raise BadFile(f"{name} remembers parameter {index} in several shapes ({shapes}): it is damaged, so delete it")


def _is_finite(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool(value.isfinite().all())
    return isinstance(value, int | float) and math.isfinite(value)


def _check_shapes(path: Path, state: Mapping[str, object], shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuse a state for other parameters than these, though its hash says otherwise."""
    groups = [as_dict(group) or {} for group in as_list(state["param_groups"]) or ()]
    count = sum(len(as_list(group.get("params")) or ()) for group in groups)
    if count != len(shapes):
        raise BadFile(f"{path.name} is for {count} parameters, the weights have {len(shapes)}: delete it")
    for index, parameter_state in (as_dict(state["state"]) or {}).items():
        moments = as_dict(parameter_state) or {}
        expected = shapes[cast("int", index)]
        for key in moments.keys() & MOMENTS:
            moment = moments[key]
            if isinstance(moment, Tensor) and tuple(moment.shape) != expected:
                problem = f"{key} of parameter {index} of shape {tuple(moment.shape)}, not {expected}"
                raise BadFile(f"{path.name} has {problem}: it is damaged, so delete it")
