"""Less memory for more time: what a UNet computes on the way forth is computed again on the way back."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from velatura.base.base import Base


@contextmanager
def gradient_checkpointing(base: Base, *, is_enabled: bool) -> Generator[None]:
    """Let the UNet keep only what goes into its blocks, not what is computed inside, if that is wanted."""
    unet: Any = base.unet
    if not is_enabled or unet.is_gradient_checkpointing:
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()
