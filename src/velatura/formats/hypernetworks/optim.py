"""A1111's optimizer files: inca.pt.optim beside inca.pt, with the hash of inca.pt and the state to train on from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from velatura.errors import BadFile, UnknownName, ignore_warnings, quantity, warn
from velatura.files import EMPTY_OLD_HASH, OLD_HASH_LENGTH, hash_old_window, short_hash
from velatura.formats.hypernetworks import a1111
from velatura.formats.hypernetworks.optimizer_fields import check_settings, check_state_fields
from velatura.formats.load_state import largest_value
from velatura.tensors import StrPath, as_dict, as_list, open_tensors, write_torch

OPTIM_SUFFIX = ".optim"
DEFAULT_OPTIMIZER = "AdamW"  # of files without a name of one
ADVICE = "delete it, and training starts with a new optimizer"
# Tensors of torch's optimizers with one value for every value of a parameter; the first are never negative
SQUARED_MOMENTS = {"exp_avg_sq", "max_exp_avg_sq", "sum", "square_avg", "acc_delta", "exp_inf"}
MOMENTS = {*SQUARED_MOMENTS, "exp_avg", "momentum_buffer", "grad_avg", "prev", "ax", "step_size"}
MAX_PLAUSIBLE_STATE = 1e12  # squares of gradients stay far below, even of a loss that is scaled for float16
OPTIMIZER_NAMES = sorted(name for name in torch.optim.__all__ if name[0].isupper() and name != "Optimizer")

ParameterShapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class OptimState:
    """State of an optimizer at the end of a training.

    Attributes:
        name: Name of the optimizer in torch.optim.
        state: Its state_dict. The learning rate in it is that of the last step: a resumed training sets its own.
    """

    name: str
    state: dict[str, object]


def read_optim(path: StrPath) -> OptimState | None:
    """Read the optimizer's state beside a hypernetwork.

    Args:
        path: The hypernetwork's .pt.

    Returns:
        The state; None if there is no .optim, or, with a warning, if it belongs to other weights.

    Raises:
        BadFile: The .optim is damaged, or does not fit the hypernetwork's parameters.
    """
    path = Path(path)
    optim_path = path.with_name(path.name + OPTIM_SUFFIX)
    if not optim_path.exists():
        return None
    name, stored_hash, state = _read_payload(optim_path)
    if not _is_hash_of(path, stored_hash):
        warn(f"{optim_path.name} belongs to other weights than {path.name}: training starts with a new optimizer")
        return None
    _check_shapes(optim_path, state, _parameter_shapes(path))
    _check_optimizer(optim_path.name, name, _parse_state(optim_path.name, state))
    _warn_of_large_values(optim_path.name, _parse_state(optim_path.name, state))
    return OptimState(name, state)


def check_optim(path: StrPath) -> None:
    """Check an optimizer's file as `read_optim` does; without the hypernetwork beside it, as far as that is possible.

    Args:
        path: The .optim.

    Raises:
        BadFile: It is damaged, or does not fit the hypernetwork beside it.
    """
    path = Path(path)
    weights_path = path.with_suffix("")
    if path.suffix.lower() == OPTIM_SUFFIX and weights_path.is_file():
        read_optim(weights_path)
        return
    name, _, state = _read_payload(path)
    parts = _parse_state(path.name, state)
    _check_optimizer(path.name, name, parts)
    _warn_of_large_values(path.name, parts)


def write_optim(path: StrPath, name: str, state: Mapping[str, object], digest: str | None = None) -> None:
    """Write an optimizer's state beside the .pt that it belongs to.

    Args:
        path: The .pt, which must be written already.
        name: Name of the optimizer in torch.optim.
        state: Its state_dict.
        digest: The hash by which A1111 matches the two files; by default that of the .pt's bytes. Embeddings have a
            checksum of their vectors instead.

    Raises:
        UnknownName: torch has no such optimizer.
        BadFile: The .pt cannot be read, or the .optim cannot be written.
    """
    path = Path(path)
    if name not in OPTIMIZER_NAMES:
        raise UnknownName.with_suggestions("optimizer", name, OPTIMIZER_NAMES)
    payload = {"optimizer_name": name, "hash": digest or short_hash(path), "optimizer_state_dict": dict(state)}
    write_torch(path.with_name(path.name + OPTIM_SUFFIX), payload)


def _parameter_shapes(path: Path) -> ParameterShapes:
    """Return the shapes of a hypernetwork's parameters, in the order in which A1111 gives them to an optimizer."""
    with ignore_warnings():  # opening the hypernetwork itself gives these warnings
        return [tuple(parameter.shape) for parameter in a1111.read(open_tensors(path)).parameters()]


def _is_hash_of(path: Path, stored_hash: str) -> bool:
    """Return True if a hash, of either length that A1111 has written, is that of a file."""
    if len(stored_hash) != OLD_HASH_LENGTH:
        return stored_hash == short_hash(path)
    return stored_hash == hash_old_window(path) and stored_hash != EMPTY_OLD_HASH


def _read_payload(path: Path) -> tuple[str, str, dict[str, object]]:
    """Return the optimizer's name, the weights' hash and the state, checked as far as is possible without weights."""
    payload = as_dict(open_tensors(path).payload)
    if payload is None or not {"hash", "optimizer_state_dict"} <= payload.keys():
        raise BadFile(f"{path.name} does not hold a hash and the state of an optimizer: {ADVICE}")
    name, stored_hash = payload.get("optimizer_name", DEFAULT_OPTIMIZER), payload["hash"]
    if name not in OPTIMIZER_NAMES:
        raise BadFile(f"{path.name} is of the optimizer {str(name)[:40]!r}, which torch does not have: {ADVICE}")
    state = _parse_state(path.name, payload["optimizer_state_dict"])
    _check_state(path.name, state)
    if not isinstance(stored_hash, str):
        raise BadFile(f"{path.name} does not say which weights it belongs to: {ADVICE}")
    return str(name), stored_hash, {"state": state.parameters, "param_groups": state.groups}


@dataclass(frozen=True)
class _StateParts:
    """Parts of an optimizer's state_dict: states by the parameters' indices, and groups with settings."""

    parameters: dict[object, object]
    groups: list[object]

    @property
    def indices(self) -> list[object]:
        """Return the indices of the parameters in all groups."""
        groups = [as_dict(group) or {} for group in self.groups]
        return [index for group in groups for index in as_list(group.get("params")) or ()]


def _parse_state(name: str, stored: object) -> _StateParts:
    fields = as_dict(stored) or {}
    parameters, groups = as_dict(fields.get("state")), as_list(fields.get("param_groups"))
    if fields.keys() != {"state", "param_groups"} or parameters is None or not groups:
        raise BadFile(f"{name} lacks the state or the parameter groups that torch's optimizers have: {ADVICE}")
    return _StateParts(parameters, groups)


def _check_state(name: str, state: _StateParts) -> None:
    """Refuse a state that no optimizer of torch has."""
    for group in state.groups:
        _check_settings(name, group)
    if state.indices != list(range(len(state.indices))) or not state.parameters.keys() <= set(state.indices):
        raise BadFile(f"{name} does not count its parameters 0, 1, 2, ...: {ADVICE}")
    for index, parameter_state in state.parameters.items():
        _check_parameter_state(name, index, as_dict(parameter_state))


def _check_optimizer(file_name: str, optimizer_name: str, state: _StateParts) -> None:
    """Refuse settings and moments that are not of the optimizer that the file names."""
    refusal = f"{file_name} has {{}}: {ADVICE}"
    settings: dict[object, Mapping[object, object]] = {}
    for group in state.groups:
        fields = as_dict(group) or {}
        check_settings(optimizer_name, fields, refusal)
        settings |= dict.fromkeys(as_list(fields.get("params")) or (), fields)
    count = len(state.parameters)
    if 0 < count < len(settings):  # a new optimizer has no state at all
        raise BadFile(refusal.format(f"a state for {count} of {len(settings)} parameters"))
    for index, parameter_state in state.parameters.items():
        check_state_fields(optimizer_name, index, as_dict(parameter_state) or {}, settings[index], refusal)


def _check_settings(name: str, group: object) -> None:
    """Refuse settings of a group that are neither finite numbers nor texts nor None."""
    for key, value in (as_dict(group) or {}).items():
        settings = as_list(value) or [value]
        if not all(isinstance(setting, str | None) or _is_finite(setting) for setting in settings):
            raise BadFile(f"{name} has a setting {str(key)[:40]!r} that is not a finite number: {ADVICE}")


def _check_parameter_state(name: str, index: object, state: Mapping[object, object] | None) -> None:
    """Refuse the state of a parameter with values that are not finite, negative squares, or unequal shapes."""
    if state is None:
        raise BadFile(f"{name} has no state for its parameter {index}: {ADVICE}")
    for key, value in state.items():
        if value is not None and not _is_finite(value):
            raise BadFile(f"{name} has {key} of parameter {index} with values that are not finite: {ADVICE}")
        if key in {*SQUARED_MOMENTS, "step"} and _has_negative_values(value):
            raise BadFile(f"{name} has {key} of parameter {index} below zero, which is not possible: {ADVICE}")
    shapes = {tuple(tensor.shape) for key, tensor in state.items() if key in MOMENTS and isinstance(tensor, Tensor)}
    if len(shapes) > 1:
        raise BadFile(f"{name} has tensors of several shapes ({shapes}) for parameter {index}: {ADVICE}")


def _warn_of_large_values(name: str, state: _StateParts) -> None:
    """Warn of a state that no training leaves: its first steps may spoil the weights."""
    for index, parameter_state in state.parameters.items():
        for key, value in (as_dict(parameter_state) or {}).items():
            largest = largest_value(value.float()) if isinstance(value, Tensor) else 0.0
            if largest > MAX_PLAUSIBLE_STATE:
                warn(f"{name} has {key} of parameter {index} of up to {largest:.4g}, as of a failed training: {ADVICE}")
                return


def _is_finite(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and bool(value.float().isfinite().all())
    return isinstance(value, int | float) and math.isfinite(value)


def _has_negative_values(value: object) -> bool:
    return isinstance(value, Tensor | int | float) and bool((torch.as_tensor(value) < 0).any())


def _check_shapes(path: Path, state: Mapping[str, object], shapes: ParameterShapes) -> None:
    """Refuse a state whose tensors have other shapes than the weights, even if its hash is theirs."""
    parts = _parse_state(path.name, state)
    count = len(parts.indices)
    if count != len(shapes):
        raise BadFile(
            f"{path.name} is for {quantity(count, 'parameter')}, but the weights have {len(shapes)}: {ADVICE}"
        )
    for index, parameter_state in parts.parameters.items():
        expected = shapes[cast("int", index)]
        for key, moment in (as_dict(parameter_state) or {}).items():
            if key in MOMENTS and isinstance(moment, Tensor) and tuple(moment.shape) != expected:
                problem = f"{key} of parameter {index} of shape {tuple(moment.shape)}, not {expected}"
                raise BadFile(f"{path.name} has {problem}: {ADVICE}")
