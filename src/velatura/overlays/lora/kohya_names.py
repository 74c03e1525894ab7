"""Kohya's names of layers: the prefix of the model, then diffusers' path with "_" in place of dots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

from velatura.overlays.deltas.delta import Layer
from velatura.overlays.target import Target

UNET_PREFIX, TEXT_PREFIX = "lora_unet_", "lora_te"


def kohya_names(target: Target) -> dict[str, str]:
    """Map kohya's names to the target's names of its layers; see Target.layer."""
    if len(target.text_encoders) > 1:
        text_prefixes = [f"{TEXT_PREFIX}1_", f"{TEXT_PREFIX}2_"]
    else:
        text_prefixes = [f"{TEXT_PREFIX}_"] * len(target.text_encoders)
    prefixes = dict(zip(target.parts, [UNET_PREFIX, *text_prefixes], strict=True))
    names: dict[str, str] = {}
    for part, model in target.parts.items():
        for path, module in cast("Iterator[tuple[str, nn.Module]]", model.named_modules()):
            if isinstance(module, Layer):
                names[prefixes[part] + canonical_path(part, path).replace(".", "_")] = f"{part}.{path}"
    return names


def names_in_files(target: Target) -> dict[str, str]:
    """Map the names that LoRA files give to layers to the target's names.

    These are kohya's names. Where there are two text encoders, "lora_te_" names the first: a diffusers file that
    changes only the first one does not tell whether there is a second.
    """
    names = kohya_names(target)
    if len(target.text_encoders) < 2:
        return names
    first_prefix = f"{TEXT_PREFIX}1_"
    unnumbered = {
        f"{TEXT_PREFIX}_{name.removeprefix(first_prefix)}": layer_name
        for name, layer_name in names.items()
        if name.startswith(first_prefix)
    }
    return unnumbered | names


def canonical_path(part: str, path: str) -> str:
    """Return a module's path as files have it: with "text_model.", which transformers 5 dropped from some models."""
    path = path.replace(".base_layer", "")  # added by peft, if it changes the layer too
    return path if part == "unet" or path.startswith(("text_model.", "text_projection")) else f"text_model.{path}"
