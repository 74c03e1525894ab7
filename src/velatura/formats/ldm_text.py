"""What single-file checkpoints call the tensors of text towers: CLIP's as transformers does, OpenCLIP's as OpenCLIP."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from velatura.formats.ldm_keys import renamed

CLIP_PREFIX = "cond_stage_model.transformer.text_model."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer.text_model."
SDXL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."

# transformers' name, OpenCLIP's
ENDS = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
TRANSPOSED = "text_projection"  # OpenCLIP multiplies from the left
FUSED = re.compile(r"(encoder\.layers\.\d+\.self_attn)\.([qkv])_proj\.(weight|bias)")
FUSED_THERE = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def clip_to_ldm(state: Mapping[str, Tensor], prefix: str = CLIP_PREFIX) -> dict[str, Tensor]:
    """A CLIP tower's tensors with a checkpoint's prefix, which holds the level that transformers 5 dropped."""
    return {prefix + key.removeprefix("text_model."): each for key, each in state.items()}


def clip_from_ldm(tensors: Mapping[str, Tensor], prefix: str = CLIP_PREFIX) -> dict[str, Tensor]:
    """A CLIP tower's tensors of a checkpoint under transformers' names, without position ids, which are no weights."""
    return {
        key.removeprefix(prefix): tensors[key]
        for key in tensors
        if key.startswith(prefix) and not key.endswith("position_ids")
    }


def open_clip_to_ldm(
    state: Mapping[str, Tensor], prefix: str = OPEN_CLIP_PREFIX, *, layers: int | None = None
) -> dict[str, Tensor]:
    """A text tower's tensors under OpenCLIP's names, queries, keys and values of a layer in one tensor.

    layers: how many the file is to have; those that are missing are copies of the last one. SD2 reads the last but one
    of 24, and diffusers keeps only those that are read.
    """
    state = {key.removeprefix("text_model."): each for key, each in state.items()}
    plain = {key: each for key, each in state.items() if not FUSED.fullmatch(key)}
    count = _layer_count(state, r"encoder\.layers\.(\d+)\.")
    named = {name: plain[key] for key, name in renamed(plain, _modules(count)).items()}
    for index in range(count):
        for kind in ("weight", "bias"):
            parts = [state[f"encoder.layers.{index}.self_attn.{each}_proj.{kind}"] for each in "qkv"]
            named[f"transformer.resblocks.{index}.attn.in_proj_{kind}"] = torch.cat(parts)
    last = f"transformer.resblocks.{count - 1}."
    for index in range(count, layers or count):
        copies = {key: each for key, each in named.items() if key.startswith(last)}
        named |= {key.replace(last, f"transformer.resblocks.{index}."): each.clone() for key, each in copies.items()}
    return {prefix + key: each.T.contiguous() if key == TRANSPOSED else each for key, each in named.items()}


def open_clip_from_ldm(
    tensors: Mapping[str, Tensor], prefix: str = OPEN_CLIP_PREFIX, *, layers: int | None = None
) -> dict[str, Tensor]:
    """A text tower's tensors of a checkpoint under transformers' names, of the first so many layers if asked."""
    bare = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
    bare = {key: each for key, each in bare.items() if key not in {"logit_scale", "attn_mask"}}
    count = _layer_count(bare, r"transformer\.resblocks\.(\d+)\.")
    plain = {key: each for key, each in bare.items() if not FUSED_THERE.fullmatch(key)}
    modules = {there: here for here, there in _modules(count).items()}
    named = {name: plain[key] for key, name in renamed(plain, modules).items()}
    if "text_projection.weight" in named:
        named["text_projection.weight"] = named["text_projection.weight"].T.contiguous()
    for key, each in bare.items():
        if found := FUSED_THERE.fullmatch(key):
            layer = f"encoder.layers.{found[1]}.self_attn"
            named |= {f"{layer}.{part}_proj.{found[2]}": rows for part, rows in zip("qkv", each.chunk(3), strict=True)}
    unread = tuple(f"encoder.layers.{index}." for index in range(layers or count, count))
    return {key: each for key, each in named.items() if not key.startswith(unread)}


def _modules(layer_count: int) -> dict[str, str]:
    layers = {
        f"encoder.layers.{index}.{ours}": f"transformer.resblocks.{index}.{theirs}"
        for index in range(layer_count)
        for ours, theirs in LAYER.items()
    }
    return {**ENDS, **layers}


def _layer_count(keys: Mapping[str, Tensor], pattern: str) -> int:
    return len({found[1] for key in keys if (found := re.match(pattern, key))})
