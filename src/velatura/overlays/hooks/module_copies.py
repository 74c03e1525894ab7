"""What of ours hangs in a module, and how copies of it are made without that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsIndex, cast

from torch import nn

HOOK_SLOT = "_velatura_seam"
OUTPUT_SLOT = "_velatura_outputs"
OUR_HOOKS = "_velatura_hooks"
_REDUCE = "__reduce_ex__"  # what deepcopy and pickle ask an object for


def exclude_from_copies(module: nn.Module, hook: object) -> Callable[[], None]:
    """Leave a hook of ours, and all else of ours, out of what deepcopy and pickle make of a module.

    A copy that kept them would run networks that no attachment of its own can ever take off.
    """
    our_hooks: list[object] = vars(module).setdefault(OUR_HOOKS, [])
    our_hooks.append(hook)
    vars(module)[_REDUCE] = partial(_reduce_without_hooks, module)

    def undo() -> None:
        our_hooks.remove(hook)
        if not our_hooks:
            del vars(module)[OUR_HOOKS], vars(module)[_REDUCE]

    return undo


def _reduce_without_hooks(module: nn.Module, protocol: SupportsIndex) -> tuple[object, ...]:
    """What deepcopy and pickle are told of a module: as if nothing of ours hung there."""
    make, arguments, state, *rest = cast("tuple[Any, ...]", type(module).__reduce_ex__(module, protocol))
    our_names = {HOOK_SLOT, OUTPUT_SLOT, OUR_HOOKS, _REDUCE, *(["forward"] if _is_ours(state.get("forward")) else [])}
    new_state = {name: value for name, value in state.items() if name not in our_names}
    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
        others = [(number, hook) for number, hook in state[hooks].items() if hook not in state[OUR_HOOKS]]
        new_state[hooks] = OrderedDict(others)
    return make, arguments, new_state, *rest


def _is_ours(forward: object) -> bool:
    """Whether the forward of a module is one that we put there."""
    return type(getattr(forward, "__self__", None)).__module__.startswith("velatura.")
