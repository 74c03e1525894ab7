"""What the layers of bases are called in files of LoRAs: as in kohya's, by the paths that diffusers gives them.

A name in that form cannot be taken apart again, since _ stands for . too: names are looked up in tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from velatura.errors import BadOverlay
from velatura.formats.checkpoints.ldm_keys import SD_LAYOUT, SDXL_LAYOUT

KOHYA_UNET, KOHYA_TEXT, KOHYA_TEXT_1, KOHYA_TEXT_2 = "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_"

UNET_STARTS = (
    *("down_blocks_", "mid_block_", "up_blocks_", "conv_in", "conv_out", "conv_norm_out"),
    *("time_embedding_", "add_embedding_"),
)
PIPELINE_PARTS = {
    KOHYA_UNET: "unet",
    KOHYA_TEXT: "text_encoder",
    KOHYA_TEXT_1: "text_encoder",
    KOHYA_TEXT_2: "text_encoder_2",
}  # diffusers' words
# all that diffusers and transformers call modules of a UNet or of a text tower: a name is made of these and of numbers
MODULE_WORDS = (
    *("down_blocks", "mid_block", "up_blocks", "attentions", "resnets", "downsamplers", "upsamplers", "conv"),
    *("conv_in", "conv_out", "conv_norm_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "time_embedding"),
    *(
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
    ),
    *("proj_in", "proj_out", "proj", "ff", "net", "norm", "norm1", "norm2", "norm3", "text_model", "text_projection"),
    *("encoder", "layers", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2", "layer_norm1"),
    *("layer_norm2", "final_layer_norm"),
)
MODULE_WORD = re.compile(rf"({'|'.join(sorted(MODULE_WORDS, key=len, reverse=True))}|\d+)(?:_|$)")
TEXT_MODEL_PREFIX = "text_model_"  # which transformers has left out of CLIPTextModel since 5, and files have


def flatten_path(path: str) -> str:
    """A module's path as it stands in kohya's files."""
    return path.replace(".", "_")


def unet_layer(name: str) -> str | None:
    """The layer of a UNet that goes by a name of diffusers' or LDM's, with . or _; None if none is called so."""
    name = flatten_path(name)
    layer = name if name.startswith(UNET_STARTS) else _rename_module(name, _ldm_to_diffusers())
    return None if layer is None else KOHYA_UNET + layer


def text_layer(name: str, root: str) -> str | None:
    """The layer of a text tower, with the level that transformers has left out; None if none is called so."""
    name = flatten_path(name).removeprefix("transformer_")
    if name.startswith(("encoder_layers_", "embeddings_", "final_layer_norm")):
        name = TEXT_MODEL_PREFIX + name
    return root + name if name.startswith((TEXT_MODEL_PREFIX, "text_projection")) else None


def diffusers_path(layer: str) -> tuple[str, str]:
    """The part of a pipeline that a layer is in, and its path there, as diffusers has both."""
    root = next(prefix for prefix in PIPELINE_PARTS if layer.startswith(prefix))
    name, path, position = layer.removeprefix(root), list[str](), 0
    while position < len(name) and (match := MODULE_WORD.match(name, position)):
        path.append(match[1])
        position = match.end()
    if position < len(name):
        raise BadOverlay(f"{layer[:120]} is no name that diffusers has for a layer: write it in dialect kohya")
    return PIPELINE_PARTS[root], ".".join(path)


def ldm_layer(layer: str) -> str:
    """The name that a layer of an SDXL's UNet has in kohya's files, which is LDM's; others keep theirs."""
    if not layer.startswith(KOHYA_UNET):
        return layer
    ldm_name = _rename_module(layer.removeprefix(KOHYA_UNET), _diffusers_to_ldm())
    return layer if ldm_name is None else KOHYA_UNET + ldm_name


def _rename_module(name: str, modules: Mapping[str, str]) -> str | None:
    """A name after the module in the table that it is, or is within."""
    module, rest = name, ""
    while module not in modules:
        module, bar, last = module.rpartition("_")
        if not bar:
            return None
        rest = f"_{last}{rest}"
    return modules[module] + rest


@cache
def _ldm_to_diffusers() -> dict[str, str]:
    tables = (layout.module_names() for layout in (SDXL_LAYOUT, SD_LAYOUT))
    return {
        flatten_path(ldm_name): flatten_path(diffusers_name)
        for table in tables
        for diffusers_name, ldm_name in table.items()
    }


@cache
def _diffusers_to_ldm() -> dict[str, str]:
    return {
        flatten_path(diffusers_name): flatten_path(ldm_name)
        for diffusers_name, ldm_name in SDXL_LAYOUT.module_names().items()
    }
