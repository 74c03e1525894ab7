"""Copies of modules that compute with other weights; the module itself stays as it is, for other threads too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from copy import copy
from types import MethodType
from typing import Any, cast

from torch import Tensor, nn

from velatura.overlays.hooks.token_hooks import EmbeddingHook, HookSlot

HOOK_ATTRIBUTES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
)
OFFLOAD_ATTRIBUTES = ("_hf_hook", "_old_forward", "forward")  # accelerate's; they would compute with the module itself


def functional_copy(module: nn.Module, weights: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """Copy a module with other weights, and with the hooks of its submodules.

    Hooks on the module itself are left out, as they run on the result of the original too, except the hook for the
    strength of embeddings. Hooks that are registered later are on one of the two only.

    Args:
        module: The module, which is not changed.
        weights: Tensors by parameter name; they are used as they are, so that gradients reach them. Parameters that
            are not named are shared.
        prefix: Prefix of the names, for submodules.
    """
    module_copy: nn.Module = object.__new__(type(module))
    state = vars(module_copy)
    state |= {name: value for name, value in vars(module).items() if name not in OFFLOAD_ATTRIBUTES}
    forward_hooks = cast("Mapping[int, object]", state["_forward_hooks"])
    strength_hook_ids = {number for number, hook in forward_hooks.items() if isinstance(_bound_object(hook), HookSlot)}
    for name in HOOK_ATTRIBUTES:
        hooks = cast("Mapping[int, Any]", state[name])
        state[name] = OrderedDict(
            (number, hook) for number, hook in hooks.items() if prefix or number in strength_hook_ids
        )
    parameters = cast("Mapping[str, Tensor | None]", state["_parameters"])  # None is a bias that the layer lacks
    new_parameters = {name: weights.get(prefix + name, parameter) for name, parameter in parameters.items()}
    children = {name: functional_copy(child, weights, f"{prefix}{name}.") for name, child in module.named_children()}
    state["_parameters"], state["_modules"] = new_parameters, children
    forward_owner = _bound_object(vars(module).get("forward"))
    if isinstance(forward_owner, EmbeddingHook):  # names of embeddings work in the copy too
        state["forward"] = _copy_embedding_hook(forward_owner, module_copy).forward
    return module_copy


def _bound_object(method: object) -> object:
    return getattr(method, "__self__", None)


def _copy_embedding_hook(embedding_hook: EmbeddingHook, table: nn.Module) -> EmbeddingHook:
    hook_copy = copy(embedding_hook)
    vars(hook_copy)["_look_up"] = MethodType(type(table).forward, table)
    return hook_copy
