"""What layers are called in kohya's files: by diffusers' paths with _ for every dot, behind the part of the base."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

from velatura.overlays.deltas.delta import Layer
from velatura.overlays.target import Target

UNET_PREFIX, TEXT_PREFIX = "lora_unet_", "lora_te"


def kohya_names(target: Target) -> dict[str, str]:
    """The names of a target's layers by those that kohya's files have for them; see Target.layer."""
    text_prefixes = (
        [f"{TEXT_PREFIX}1_", f"{TEXT_PREFIX}2_"]
        if len(target.text_encoders) > 1
        else [f"{TEXT_PREFIX}_"] * len(target.text_encoders)
    )
    prefixes = dict(zip(target.parts, [UNET_PREFIX, *text_prefixes], strict=True))
    names: dict[str, str] = {}
    for part, model in target.parts.items():
        for path, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
            if isinstance(module, Layer):
                names[prefixes[part] + canonical_path(part, path).replace(".", "_")] = f"{part}.{path}"
    return names


def canonical_path(part: str, path: str) -> str:
    """A module's path as files have it: with the level text_model, which transformers 5 dropped from some towers."""
    path = path.replace(".base_layer", "")  # peft's, around a layer that it changes too
    return path if part == "unet" or path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"
