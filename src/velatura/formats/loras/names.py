"""Names of a base's layers in LoRA files: kohya's names, made from diffusers' paths with "_" for ".".

Such a name cannot be split again, because "_" also stands inside diffusers' words; tables of known names do it instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from velatura.errors import BadOverlay
from velatura.formats.checkpoints.ldm_keys import SD_LAYOUT, SDXL_LAYOUT
from velatura.formats.checkpoints.ldm_text import TEXT_MODEL_PREFIX

KOHYA_UNET = "lora_unet_"
KOHYA_TEXT = "lora_te_"  # the only text encoder of an SD1 or SD2
KOHYA_TEXT_1, KOHYA_TEXT_2 = "lora_te1_", "lora_te2_"  # the two text encoders of an SDXL

UNET_STARTS = (
    "down_blocks_",
    "mid_block_",
    "up_blocks_",
    "conv_in",
    "conv_out",
    "conv_norm_out",
    "time_embedding_",
    "add_embedding_",
)
# diffusers' name of the part of a pipeline, by kohya's prefix
PIPELINE_PARTS = {
    KOHYA_UNET: "unet",
    KOHYA_TEXT: "text_encoder",
    KOHYA_TEXT_1: "text_encoder",
    KOHYA_TEXT_2: "text_encoder_2",
}
# Every word in the paths of diffusers' UNets and transformers' text encoders; the rest of a path is numbers.
MODULE_WORDS = (
    "down_blocks",
    "mid_block",
    "up_blocks",
    "attentions",
    "resnets",
    "downsamplers",
    "upsamplers",
    "conv",
    "conv_in",
    "conv_out",
    "conv_norm_out",
    "conv1",
    "conv2",
    "conv_shortcut",
    "time_emb_proj",
    "time_embedding",
    "add_embedding",
    "linear_1",
    "linear_2",
    "transformer_blocks",
    "attn1",
    "attn2",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "proj_in",
    "proj_out",
    "proj",
    "ff",
    "net",
    "norm",
    "norm1",
    "norm2",
    "norm3",
    "text_model",
    "text_projection",
    "encoder",
    "layers",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "mlp",
    "fc1",
    "fc2",
    "layer_norm1",
    "layer_norm2",
    "final_layer_norm",
)
MODULE_WORD = re.compile(rf"({'|'.join(sorted(MODULE_WORDS, key=len, reverse=True))}|\d+)(?:_|$)")
FLAT_TEXT_MODEL_PREFIX = TEXT_MODEL_PREFIX.replace(".", "_")  # in all LoRA files of kohya
TEXT_MODEL_STARTS = ("encoder_layers_", "embeddings_", "final_layer_norm")


def flatten_path(path: str) -> str:
    """Return a module's path as kohya's files write it, with "_" for "."."""
    return path.replace(".", "_")


def unet_layer(name: str) -> str | None:
    """Return kohya's name of a UNet layer.

    Args:
        name: The layer's path in diffusers' or LDM's words, with "." or "_" between them.

    Returns:
        lora_unet_ and diffusers' path with "_", or None if no UNet here has such a layer.
    """
    name = flatten_path(name)
    layer = name if name.startswith(UNET_STARTS) else _rename_module(name, _ldm_to_diffusers())
    return None if layer is None else KOHYA_UNET + layer


def text_layer(name: str, prefix: str) -> str | None:
    """Return kohya's name of a text encoder's layer, with the level text_model that transformers 5 left out.

    Args:
        name: The layer's path in transformers' words, with "." or "_" between them.
        prefix: KOHYA_TEXT, KOHYA_TEXT_1 or KOHYA_TEXT_2.

    Returns:
        The prefix and the path with "_", or None if no text encoder here has such a layer.
    """
    name = flatten_path(name).removeprefix("transformer_")
    if name.startswith(TEXT_MODEL_STARTS):
        name = FLAT_TEXT_MODEL_PREFIX + name
    return prefix + name if name.startswith((FLAT_TEXT_MODEL_PREFIX, "text_projection")) else None


def diffusers_part(layer: str) -> str:
    """Return diffusers' name of the part of a pipeline in which a layer is, such as "unet", by kohya's name of it."""
    return next(part for prefix, part in PIPELINE_PARTS.items() if layer.startswith(prefix))


def diffusers_path(layer: str) -> tuple[str, str]:
    """Split kohya's name of a layer into the part of diffusers' pipeline and the path in it.

    Returns:
        For example "unet" and "mid_block.attentions.0.proj_in".

    Raises:
        BadOverlay: The name contains a word that diffusers does not use.
    """
    prefix = next(candidate for candidate in PIPELINE_PARTS if layer.startswith(candidate))
    name = layer.removeprefix(prefix)
    path: list[str] = []
    position = 0
    while position < len(name):
        match = MODULE_WORD.match(name, position)
        if match is None:
            raise BadOverlay(f"{layer[:120]} is not the name of a layer in diffusers: write it in dialect kohya")
        path.append(match[1])
        position = match.end()
    return PIPELINE_PARTS[prefix], ".".join(path)


def ldm_layer(layer: str) -> str:
    """Return the name that kohya's files give a layer of an SDXL: LDM's for the UNet, and unchanged for the others."""
    if not layer.startswith(KOHYA_UNET):
        return layer
    ldm_name = _rename_module(layer.removeprefix(KOHYA_UNET), _diffusers_to_ldm())
    return layer if ldm_name is None else KOHYA_UNET + ldm_name


def _rename_module(name: str, modules: Mapping[str, str]) -> str | None:
    """Rename the longest leading part of a name that the table has, and keep the rest."""
    module, rest = name, ""
    while module not in modules:
        module, separator, last = module.rpartition("_")
        if not separator:
            return None
        rest = f"_{last}{rest}"
    return modules[module] + rest


@cache
def _ldm_to_diffusers() -> dict[str, str]:
    names: dict[str, str] = {}
    for layout in (SDXL_LAYOUT, SD_LAYOUT):
        for diffusers_name, ldm_name in layout.module_names().items():
            names[flatten_path(ldm_name)] = flatten_path(diffusers_name)
    return names


@cache
def _diffusers_to_ldm() -> dict[str, str]:
    return {
        flatten_path(diffusers_name): flatten_path(ldm_name)
        for diffusers_name, ldm_name in SDXL_LAYOUT.module_names().items()
    }
