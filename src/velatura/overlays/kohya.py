"""What layers are called in kohya's files: by diffusers' paths with _ for every dot, behind the part of the base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

from velatura.overlays.deltas.delta import Layer
from velatura.overlays.target import Target

UNET, TEXT = "lora_unet_", "lora_te"


def kohya_names(target: Target) -> dict[str, str]:
    """The names of a target's layers by those that kohya's files have for them; see Target.layer."""
    text = [f"{TEXT}1_", f"{TEXT}2_"] if len(target.towers) > 1 else [f"{TEXT}_"] * len(target.towers)
    prefixes = dict(zip(target.parts, [UNET, *text], strict=True))
    found: dict[str, str] = {}
    for part, model in target.parts.items():
        for path, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
            if isinstance(module, Layer):
                found[prefixes[part] + canonical(part, path).replace(".", "_")] = f"{part}.{path}"
    return found


def canonical(part: str, path: str) -> str:
    """A module's path as files have it: with the level text_model, which transformers 5 dropped from some towers."""
    path = path.replace(".base_layer", "")  # peft's, around a layer that it changes too
    return path if part == "unet" or path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"
