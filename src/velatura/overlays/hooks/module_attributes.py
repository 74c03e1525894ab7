"""Attributes that overlays set on modules: slots, replaced forwards, and copies of a module without them."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, SupportsIndex, cast

from torch import Tensor, nn

from velatura.errors import warn
from velatura.overlays.affine import is_foldable

Undo = Callable[[], None]
Forward = Callable[[Tensor], Tensor]

HOOK_SLOT = "_velatura_seam"
OUTPUT_SLOT = "_velatura_outputs"
OUR_HOOKS = "_velatura_hooks"
COPY_WARNINGS = "_velatura_copy_warnings"
_REDUCE = "__reduce_ex__"  # the method that deepcopy and pickle call


def exclude_from_copies(module: nn.Module, hook: object) -> Undo:
    """Leave a hook, and all our attributes, out of copies of a module by deepcopy and pickle.

    A copy with the hook would run networks that no attachment could detach from it.

    Args:
        module: The module on which the hook is registered.
        hook: The function that was registered.

    Returns:
        A function that forgets the hook again.
    """
    our_hooks: list[object] = vars(module).setdefault(OUR_HOOKS, [])
    our_hooks.append(hook)
    vars(module)[_REDUCE] = partial(_reduce_without_hooks, module)

    def undo() -> None:
        our_hooks.remove(hook)
        if not our_hooks:
            del vars(module)[OUR_HOOKS]
            _restore_copying(module)

    return undo


def warn_of_copies(module: nn.Module, message: str) -> Undo:
    """Warn with this message whenever a module is copied by deepcopy or pickle, since the copy has no overlays.

    Args:
        module: The UNet or the text encoder to which an overlay is attached.
        message: What the copy lacks, and what to do.

    Returns:
        A function that ends it.
    """
    messages: list[str] = vars(module).setdefault(COPY_WARNINGS, [])
    messages.append(message)
    vars(module)[_REDUCE] = partial(_reduce_without_hooks, module)
    reference = weakref.ref(module)  # the model can be freed while the attachment, which holds the undo, is kept

    def undo() -> None:
        messages.remove(message)
        module = reference()
        if module is not None and not messages:
            del vars(module)[COPY_WARNINGS]
            _restore_copying(module)

    return undo


def _restore_copying(module: nn.Module) -> None:
    """Let deepcopy and pickle copy a module as usual if it has none of our attributes any more."""
    if OUR_HOOKS not in vars(module) and COPY_WARNINGS not in vars(module):
        del vars(module)[_REDUCE]


def _reduce_without_hooks(module: nn.Module, protocol: SupportsIndex) -> tuple[object, ...]:
    """Describe a module to deepcopy and pickle without our hooks and attributes, and say what the copy lacks."""
    for message in dict.fromkeys(vars(module).get(COPY_WARNINGS, ())):
        warn(message)
    make, arguments, state, *rest = cast("tuple[Any, ...]", type(module).__reduce_ex__(module, protocol))
    our_names = {HOOK_SLOT, OUTPUT_SLOT, OUR_HOOKS, COPY_WARNINGS, _REDUCE}
    if _is_ours(state.get("forward")):
        our_names.add("forward")
    new_state = {name: value for name, value in state.items() if name not in our_names}
    our_hooks: list[object] = state.get(OUR_HOOKS, [])
    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
        others = [(number, hook) for number, hook in state[hooks].items() if hook not in our_hooks]
        new_state[hooks] = OrderedDict(others)
    return make, arguments, new_state, *rest


def _is_ours(forward: object) -> bool:
    """Return True if a module's forward is one that this package set."""
    return type(getattr(forward, "__self__", None)).__module__.startswith("velatura.")


def is_unwrapped(projection: nn.Module) -> bool:
    """Return True if a projection is a plain Linear whose forward was not replaced."""
    return is_foldable(projection) and "forward" not in vars(projection)


def replace_forward(module: nn.Module, forward: Forward) -> Undo:
    """Replace a module's forward, and return the undo, which restores the earlier one."""
    previous = vars(module).get("forward")
    module.forward = forward

    def undo() -> None:
        restore_forward(module, forward)
        if previous is not None and "forward" not in vars(module):
            module.forward = previous

    return undo


def restore_forward(projection: nn.Module, forward: Forward) -> None:
    """Remove our forward from a module, unless another one was wrapped around it since."""
    if vars(projection).get("forward") == forward:
        del projection.forward
