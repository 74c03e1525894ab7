"""Import large libraries at less cost: without searches for garbage that find none, and without unused guests.

Thousands of modules make millions of objects that stay. Python's collector walks over them again and again while they
are imported, and once more when the process ends: a fifth of the time until the first picture.
"""

import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

from velatura.errors import BadSettings

# diffusers imports peft wherever it is installed, for adapters, which velatura reads without it
UNUSED_LIBRARIES = ("peft",)
MODEL_MODULES = (
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "transformers.models.clip.modeling_clip",
)
IS_OWN_PROCESS = ContextVar("IS_OWN_PROCESS", default=False)


@contextmanager
def pause_garbage_collection() -> Generator[None]:
    """Collect no garbage while modules are imported; afterwards it is collected as before.

    In a process of velatura's own, later searches pass over what is in memory then, as long as no model can be open.
    """
    was_enabled = gc.isenabled()
    has_models = MODEL_MODULES[0] in sys.modules
    gc.disable()
    try:
        yield
    finally:
        if IS_OWN_PROCESS.get() and not has_models:
            gc.freeze()
        if was_enabled:
            gc.enable()


@cache
def import_model_libraries() -> None:
    """Import diffusers and transformers with the classes of a base's models, once and with no collection of garbage."""
    with pause_garbage_collection():
        for name in MODEL_MODULES:
            import_module(name)


def check_ray_installed() -> None:
    """Refuse a cluster where Ray is not installed, before anything is loaded.

    Raises:
        BadSettings: It is not.
    """
    if find_spec("ray") is None:
        raise BadSettings('Ray, which runs work on a cluster, is not installed: pip install "velatura[cluster]"')


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
