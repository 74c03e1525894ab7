"""A module that computes with other weights, while the module itself is left as it is, for other threads too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import copy
from types import MethodType
from typing import Any, cast

from torch import Tensor, nn

from velatura.overlays.splice import Seam, Splice

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
OFFLOADING = ("_hf_hook", "_old_forward", "forward")  # accelerate's, which would compute with the module itself


def shadow(module: nn.Module, weights: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """The module with weights by name in place of its own, and with the hooks that hang in it.

    Of its outermost hooks only those are kept that weigh words: others would change what it says once more. The weights
    are plain tensors, so that those which ask for gradients get them. Hooks that come later hang on one
    of the two only.
    """
    made: nn.Module = object.__new__(type(module))
    state = vars(made)
    state |= {name: each for name, each in vars(module).items() if name not in OFFLOADING}
    behind = cast("Mapping[int, object]", state["_forward_hooks"])
    weighs = {number for number, hook in behind.items() if isinstance(_owner(hook), Seam)}
    for name in HOOKS:
        hooks = cast("Mapping[int, Any]", state[name])
        state[name] = OrderedDict((number, each) for number, each in hooks.items() if prefix or number in weighs)
    parameters = cast("Mapping[str, Tensor | None]", state["_parameters"])  # None stands for a bias that is not there
    own = {name: weights.get(prefix + name, each) for name, each in parameters.items()}
    children = {name: shadow(each, weights, f"{prefix}{name}.") for name, each in module.named_children()}
    state["_parameters"], state["_modules"] = own, children
    spliced = _owner(vars(module).get("forward"))
    if isinstance(spliced, Splice):  # words that stand for vectors are found in a shadow too
        state["forward"] = _respliced(spliced, made).forward
    return made


def _owner(method: object) -> object:
    return getattr(method, "__self__", None)


def _respliced(splice: Splice, table: nn.Module) -> Splice:
    found = copy(splice)
    vars(found)["_look_up"] = MethodType(type(table).forward, table)
    return found
