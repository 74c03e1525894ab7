"""Fields in the states of torch's optimizers, and the ranges of their settings, by the name of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, cast

from torch import Tensor

from velatura.errors import BadFile

MOMENTS_OF_ADAM = frozenset({"step", "exp_avg", "exp_avg_sq"})


class StateFields(NamedTuple):
    """Names of what an optimizer keeps of each parameter."""

    required: frozenset[str]
    optional: frozenset[str] = frozenset()


STATE_FIELDS = {
    "Adadelta": StateFields(frozenset({"step", "square_avg", "acc_delta"})),
    "Adafactor": StateFields(frozenset({"step"}), frozenset({"row_var", "col_var", "variance"})),
    "Adagrad": StateFields(frozenset({"step", "sum"})),
    "Adam": StateFields(MOMENTS_OF_ADAM, frozenset({"max_exp_avg_sq"})),
    "AdamW": StateFields(MOMENTS_OF_ADAM, frozenset({"max_exp_avg_sq"})),
    "Adamax": StateFields(frozenset({"step", "exp_avg", "exp_inf"})),
    "ASGD": StateFields(frozenset({"step", "eta", "mu", "ax"})),
    "Muon": StateFields(frozenset({"momentum_buffer"})),
    "NAdam": StateFields(MOMENTS_OF_ADAM | {"mu_product"}),
    "RAdam": StateFields(MOMENTS_OF_ADAM),
    "RMSprop": StateFields(frozenset({"step", "square_avg"}), frozenset({"momentum_buffer", "grad_avg"})),
    "Rprop": StateFields(frozenset({"step", "prev", "step_size"})),
    "SGD": StateFields(frozenset(), frozenset({"momentum_buffer"})),
    "SparseAdam": StateFields(MOMENTS_OF_ADAM),
}
WITH_BETAS = frozenset({"Adam", "AdamW", "Adamax", "NAdam", "RAdam", "SparseAdam"})
SETTING_LIMITS = {  # least, and the greatest value
    "lr": (0.0, math.inf),
    "eps": (0.0, math.inf),
    "weight_decay": (0.0, math.inf),
    "lr_decay": (0.0, math.inf),
    "momentum": (0.0, 1.0),
    "dampening": (0.0, 1.0),
    "rho": (0.0, 1.0),
    "alpha": (0.0, 1.0),
}


def check_settings(name: str, settings: Mapping[object, object], refusal: str) -> None:
    """Refuse settings of a parameter group with which the optimizer cannot work.

    Args:
        name: The optimizer in torch.optim.
        settings: The group's settings.
        refusal: Beginning and end of the message, with {} between them.

    Raises:
        BadFile: A setting is missing or out of range.
    """
    betas = settings.get("betas")
    if betas is not None or name in WITH_BETAS:
        values = cast("tuple[object, ...]", betas) if isinstance(betas, tuple | list) else ()
        if len(values) != 2 or not all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in values):
            raise BadFile(refusal.format(f"the betas {values[:3]}, not two numbers from 0 to below 1"))
    if "lr" not in settings:
        raise BadFile(refusal.format("a parameter group without a learning rate"))
    for key, (least, greatest) in SETTING_LIMITS.items():
        value = settings.get(key)
        if isinstance(value, int | float | Tensor) and not least <= float(value) <= greatest:
            raise BadFile(refusal.format(f"the setting {key} of {float(value):g}, not from {least:g} to {greatest:g}"))
    if settings.get("maximize"):
        raise BadFile(refusal.format("a state that maximizes the loss"))


def check_state_fields(
    name: str, index: object, state: Mapping[object, object], settings: Mapping[object, object], refusal: str
) -> None:
    """Refuse the state of a parameter that is not of this optimizer.

    Args:
        name: The optimizer in torch.optim.
        index: Index of the parameter, for messages.
        state: What the optimizer keeps of the parameter.
        settings: Settings of its group.
        refusal: Beginning and end of the message, with {} between them.

    Raises:
        BadFile: A moment is missing or not a tensor, or belongs to another optimizer.
    """
    fields = STATE_FIELDS.get(name)
    if fields is None:
        return
    required = fields.required | ({"max_exp_avg_sq"} if settings.get("amsgrad") else set[str]())
    if missing := required - state.keys():
        raise BadFile(refusal.format(f"no {min(missing)} of parameter {index}, which {name} needs"))
    if unknown := {str(key) for key in state} - fields.required - fields.optional:
        raise BadFile(refusal.format(f"{min(unknown)[:40]} of parameter {index}, which {name} does not have"))
    for key in fields.required - {"step", "eta", "mu", "mu_product"}:
        if not isinstance(state[key], Tensor):
            raise BadFile(refusal.format(f"{key} of parameter {index} that is not a tensor"))
    step = state.get("step")
    if isinstance(step, Tensor) and step.numel() != 1:
        raise BadFile(refusal.format(f"{step.numel()} step counts of parameter {index}, not one"))
