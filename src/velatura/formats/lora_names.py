"""What the layers of bases are called in files of LoRAs: as in kohya's, by the paths that diffusers gives them.

A name in that form cannot be taken apart again, since _ stands for . too: names are looked up in tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from velatura.errors import BadOverlay
from velatura.formats.ldm_keys import UNetLayout

UNET, TEXT, TEXT_1, TEXT_2 = "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_"

SD, SDXL = (  # of SD1 and SD2, and of SDXL: where they share a name of LDM's, it is of the same module
    UNetLayout(2, (True, True, True, False), (False, True, True, True)),
    UNetLayout(2, (False, True, True), (True, True, False)),
)
STARTS = (
    *("down_blocks_", "mid_block_", "up_blocks_", "conv_in", "conv_out", "conv_norm_out"),
    *("time_embedding_", "add_embedding_"),
)
PARTS = {UNET: "unet", TEXT: "text_encoder", TEXT_1: "text_encoder", TEXT_2: "text_encoder_2"}  # diffusers' words
# all that diffusers and transformers call modules of a UNet or of a text tower: a name is made of these and of numbers
WORDS = (
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
WORD = re.compile(rf"({'|'.join(sorted(WORDS, key=len, reverse=True))}|\d+)(?:_|$)")
LEVEL = "text_model_"  # which transformers has left out of CLIPTextModel since 5, and files have


def flattened(path: str) -> str:
    """A module's path as it stands in kohya's files."""
    return path.replace(".", "_")


def unet_layer(name: str) -> str | None:
    """The layer of a UNet that goes by a name of diffusers' or LDM's, with . or _; None if none is called so."""
    name = flattened(name)
    found = name if name.startswith(STARTS) else _moved(name, _from_ldm())
    return None if found is None else UNET + found


def text_layer(name: str, root: str) -> str | None:
    """The layer of a text tower, with the level that transformers has left out; None if none is called so."""
    name = flattened(name).removeprefix("transformer_")
    if name.startswith(("encoder_layers_", "embeddings_", "final_layer_norm")):
        name = LEVEL + name
    return root + name if name.startswith((LEVEL, "text_projection")) else None


def dotted(layer: str) -> tuple[str, str]:
    """The part of a pipeline that a layer is in, and its path there, as diffusers has both."""
    root = next(each for each in PARTS if layer.startswith(each))
    name, path, place = layer.removeprefix(root), list[str](), 0
    while place < len(name) and (found := WORD.match(name, place)):
        path.append(found[1])
        place = found.end()
    if place < len(name):
        raise BadOverlay(f"{layer[:120]} is no name that diffusers has for a layer: write it in dialect kohya")
    return PARTS[root], ".".join(path)


def ldm_layer(layer: str) -> str:
    """The name that a layer of an SDXL's UNet has in kohya's files, which is LDM's; others keep theirs."""
    if not layer.startswith(UNET):
        return layer
    found = _moved(layer.removeprefix(UNET), _to_ldm())
    return layer if found is None else UNET + found


def _moved(name: str, modules: Mapping[str, str]) -> str | None:
    """A name after the module in the table that it is, or is within."""
    module, rest = name, ""
    while module not in modules:
        module, bar, last = module.rpartition("_")
        if not bar:
            return None
        rest = f"_{last}{rest}"
    return modules[module] + rest


@cache
def _from_ldm() -> dict[str, str]:
    tables = (layout.modules() for layout in (SDXL, SD))
    return {flattened(there): flattened(here) for table in tables for here, there in table.items()}


@cache
def _to_ldm() -> dict[str, str]:
    return {flattened(here): flattened(there) for here, there in SDXL.modules().items()}
