"""Import large libraries at less cost: without searches for garbage that find none, and without unused guests.

Thousands of modules make millions of objects that stay. Python's collector walks over them again and again while they
are imported, and once more when the process ends: a fifth of the time until the first picture.
"""

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

# diffusers imports peft wherever it is installed, for adapters, which velatura reads without it
UNUSED_LIBRARIES = ("peft",)
IS_OWN_PROCESS = ContextVar("IS_OWN_PROCESS", default=False)


@contextmanager
def pause_garbage_collection() -> Generator[None]:
    """Collect no garbage while modules are imported and models are built; afterwards it is collected as before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if IS_OWN_PROCESS.get():
            gc.freeze()  # modules and models stay until the end: later searches pass over them
        if was_enabled:
            gc.enable()


@contextmanager
def run_as_own_process() -> Generator[None]:
    """Run in a process that does nothing else: no other code in it can miss what is left out here.

    Libraries believe that those of UNUSED_LIBRARIES are not installed, and the process ends without a last search for
    garbage, since its memory is given back anyway.
    """
    modules = cast("dict[str, Any]", sys.modules)
    for name in UNUSED_LIBRARIES:
        modules.setdefault(name, None)
    token = IS_OWN_PROCESS.set(True)
    try:
        yield
    finally:
        IS_OWN_PROCESS.reset(token)
        gc.freeze()
