"""Continue a training of A1111's web UI: a new optimizer gets the state in the .pt.optim beside the .pt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from velatura.errors import ignore_warnings, warn
from velatura.formats.hypernetworks.optim import OPTIM_SUFFIX, OptimState, read_optim
from velatura.formats.open import open_overlay
from velatura.overlays.hypernetwork import Hypernetwork
from velatura.overlays.overlay import Overlay
from velatura.training.optimizers import OPTIMIZERS

# Settings that the moments depend on; the others, such as the learning rate, are the plan's
SETTINGS_OF_MOMENTS = ("betas", "eps", "amsgrad")
PLAN_NAMES = {source.name: name for name, source in OPTIMIZERS.items() if source.package == "torch"}


def load_a1111_state(overlay: Overlay, optimizer: Optimizer) -> bool:
    """Load the state beside the .pt from which a hypernetwork was opened, if there is one, into its new optimizer.

    Args:
        overlay: The overlay, in float32. Its weights must be those of its file: after another training in the same
            program they are not, and the state is left alone with a warning.
        optimizer: The plan's optimizer for the overlay. It keeps the plan's learning rate and weight decay.

    Returns:
        True if the optimizer continues. If there is a state that it cannot take, a warning says why.

    Raises:
        BadFile: The .optim is damaged, or does not fit the hypernetwork.
    """
    path = overlay.source
    if not isinstance(overlay, Hypernetwork) or path is None or not _optim_path(path).is_file():
        return False
    if not _has_weights_of(overlay, path):
        warn(
            f"{_optim_path(path).name} belongs to the weights in {path.name}, which have changed since it was opened: "
            "training starts with a new optimizer"
        )
        return False
    stored = read_optim(path)
    problem = "" if stored is None else _find_obstacle(stored, optimizer)
    if problem:
        warn(f"{_optim_path(path).name} {problem}: training starts with a new optimizer")
    if stored is None or problem:
        return False
    _load(stored, optimizer)
    return True


def _optim_path(path: Path) -> Path:
    return path.with_name(path.name + OPTIM_SUFFIX)


def _has_weights_of(overlay: Hypernetwork, path: Path) -> bool:
    with ignore_warnings():  # opening the overlay itself gave these warnings
        stored_weights = open_overlay(path).state_dict()
    weights = overlay.state_dict()
    return weights.keys() == stored_weights.keys() and all(
        torch.equal(weight.cpu(), stored_weights[name].to(weight.dtype)) for name, weight in weights.items()
    )


def _find_obstacle(stored: OptimState, optimizer: Optimizer) -> str:
    """Return why an optimizer cannot take a state, or an empty string."""
    planned = type(optimizer).__name__
    if stored.name != planned:
        choice = PLAN_NAMES.get(stored.name)
        advice = f"; choose the optimizer {choice} to continue it" if choice else ", which velatura does not train with"
        return f"is of the optimizer {stored.name}, and this training uses {planned}{advice}"
    if not stored.state["state"]:
        return "has no moments"
    return ""


@torch.no_grad()
def _load(stored: OptimState, optimizer: Optimizer) -> None:
    """Copy moments and step counts, in the order of the parameters, which is that of the file."""
    moments = cast("Mapping[int, Mapping[str, object]]", stored.state["state"])
    state: dict[int, dict[str, object]] = {
        index: {name: _as_float32(name, value) for name, value in values.items()} for index, values in moments.items()
    }
    [settings, *_] = cast("list[Mapping[str, object]]", stored.state["param_groups"])
    groups = cast("list[dict[str, Any]]", optimizer.state_dict()["param_groups"])
    kept = {name: settings[name] for name in SETTINGS_OF_MOMENTS if name in settings}
    optimizer.load_state_dict({"state": state, "param_groups": [group | kept for group in groups]})


def _as_float32(name: str, value: object) -> object:
    if isinstance(value, Tensor):
        return value.float()
    return torch.tensor(float(cast("float", value))) if name == "step" else value
