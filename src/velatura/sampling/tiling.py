"""Painting what can be laid side by side without a seam."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from torch import nn

from velatura.base.base import Base


@contextmanager
def seamless_tiling(base: Base, *, is_wanted: bool) -> Generator[None]:
    """Let each edge of a picture border on the opposite one, in every convolution of UNet and autoencoder.

    The base is as before at the end, also after an error.
    """
    models = (base.unet, base.vae) if is_wanted else ()
    layers = [layer for model in models for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    layers = [layer for layer in layers if layer.padding_mode == "zeros"]
    try:
        for layer in layers:
            layer.padding_mode = "circular"
        yield
    finally:
        for layer in layers:
            layer.padding_mode = "zeros"
