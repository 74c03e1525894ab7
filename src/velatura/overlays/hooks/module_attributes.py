"""Attributes that overlays set on modules: slots, replaced forwards, and copies of a module without them."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from inspect import currentframe
from types import FrameType
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
PART_COPY_WARNINGS = "_velatura_part_copy_warnings"
_REDUCE = "__reduce_ex__"  # the method that deepcopy and pickle call
# The frame and the instruction that pickled modules with our hooks last, and the ids of these modules
_PICKLED: dict[tuple[int, int], set[int]] = {}


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


def warn_of_copies(module: nn.Module, message: str, part_message: str) -> Undo:
    """Warn whenever a module, or a part of it with our hooks, is copied by deepcopy or pickle: copies have no overlays.

    Args:
        module: The UNet or the text encoder to which an overlay is attached.
        message: What a copy of it lacks, and what to do.
        part_message: The same for a copy of a part of it alone.

    Returns:
        A function that ends it.
    """
    undos = [_add_copy_warning(module, COPY_WARNINGS, message)]
    for part in module.modules():
        if part is not module and OUR_HOOKS in vars(part):
            undos.append(_add_copy_warning(part, PART_COPY_WARNINGS, part_message))

    def undo() -> None:
        for undo_one in undos:
            undo_one()

    return undo


def _add_copy_warning(module: nn.Module, attribute: str, message: str) -> Undo:
    messages: list[str] = vars(module).setdefault(attribute, [])
    messages.append(message)
    vars(module)[_REDUCE] = partial(_reduce_without_hooks, module)
    reference = weakref.ref(module)  # the model can be freed while the attachment, which holds the undo, is kept

    def undo() -> None:
        messages.remove(message)
        module = reference()
        if module is not None and not messages:
            del vars(module)[attribute]
            _restore_copying(module)

    return undo


def _restore_copying(module: nn.Module) -> None:
    """Let deepcopy and pickle copy a module as usual if it has none of our attributes any more."""
    if not vars(module).keys() & {OUR_HOOKS, COPY_WARNINGS, PART_COPY_WARNINGS}:
        del vars(module)[_REDUCE]


def _reduce_without_hooks(module: nn.Module, protocol: SupportsIndex) -> tuple[object, ...]:
    """Describe a module to deepcopy and pickle without our hooks and attributes, and say what the copy lacks."""
    frame = currentframe()
    assert frame is not None
    is_first = _is_first_of_copy(module, frame.f_back)
    messages: list[str] = vars(module).get(COPY_WARNINGS, [])
    if is_first:  # else its parts are copied with a whole that was warned of, or after another part
        messages = [*messages, *vars(module).get(PART_COPY_WARNINGS, ())]
    for message in dict.fromkeys(messages):
        warn(message)
    make, arguments, state, *rest = cast("tuple[Any, ...]", type(module).__reduce_ex__(module, protocol))
    our_names = {HOOK_SLOT, OUTPUT_SLOT, OUR_HOOKS, COPY_WARNINGS, PART_COPY_WARNINGS, _REDUCE}
    if _is_ours(state.get("forward")):
        our_names.add("forward")
    new_state = {name: value for name, value in state.items() if name not in our_names}
    our_hooks: list[object] = state.get(OUR_HOOKS, [])
    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
        others = [(number, hook) for number, hook in state[hooks].items() if hook not in our_hooks]
        new_state[hooks] = OrderedDict(others)
    return make, arguments, new_state, *rest


def _is_first_of_copy(module: nn.Module, caller: FrameType | None) -> bool:
    """Return True for the first module with our hooks in one call of deepcopy or pickle.

    Args:
        module: The module that is copied.
        caller: The frame that asks how it is copied: that of deepcopy, or of the line that pickles.
    """
    if caller is None:
        return True
    memo = caller.f_locals.get("memo") if caller.f_code is deepcopy.__code__ else None
    if isinstance(memo, dict):  # of all objects that this call of deepcopy has copied, by their ids
        copied = cast("dict[int, object]", memo)
        is_first = id(_PICKLED) not in copied
        copied[id(_PICKLED)] = True
        return is_first
    place = (id(caller), caller.f_lasti)
    is_first = place not in _PICKLED or id(module) in _PICKLED[place]  # a pickle asks each module once
    if is_first or COPY_WARNINGS in vars(module):
        _PICKLED.clear()
        _PICKLED[place] = set()
    _PICKLED[place].add(id(module))
    return is_first


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
