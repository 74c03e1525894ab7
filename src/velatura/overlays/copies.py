"""What of ours hangs in a module, and how copies of it are made without that."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsIndex, cast

from torch import nn

SEAM = "_velatura_seam"
OUTPUTS = "_velatura_outputs"
OURS = "_velatura_hooks"
_REDUCE = "__reduce_ex__"  # what deepcopy and pickle ask an object for


def copied_without(module: nn.Module, hook: object) -> Callable[[], None]:
    """Leave a hook of ours, and all else of ours, out of what deepcopy and pickle make of a module.

    A copy that kept them would run networks that no attachment of its own can ever take off.
    """
    ours: list[object] = vars(module).setdefault(OURS, [])
    ours.append(hook)
    vars(module)[_REDUCE] = partial(_reduced, module)

    def undo() -> None:
        ours.remove(hook)
        if not ours:
            del vars(module)[OURS], vars(module)[_REDUCE]

    return undo


def _reduced(module: nn.Module, protocol: SupportsIndex) -> tuple[object, ...]:
    """What deepcopy and pickle are told of a module: as if nothing of ours hung there."""
    make, arguments, state, *rest = cast("tuple[Any, ...]", type(module).__reduce_ex__(module, protocol))
    ours = {SEAM, OUTPUTS, OURS, _REDUCE, *(["forward"] if _is_ours(state.get("forward")) else [])}
    kept = {name: each for name, each in state.items() if name not in ours}
    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
        others = [(number, each) for number, each in state[hooks].items() if each not in state[OURS]]
        kept[hooks] = OrderedDict(others)
    return make, arguments, kept, *rest


def _is_ours(forward: object) -> bool:
    """Whether the forward of a module is one that we put there."""
    return type(getattr(forward, "__self__", None)).__module__.startswith("velatura.")
