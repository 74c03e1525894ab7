"""What single-file checkpoints call the tensors of text towers: CLIP's as transformers does, OpenCLIP's as OpenCLIP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from velatura.formats.ldm_keys import below, renamed
from velatura.formats.sources import Source, part, turned, unchanged

CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
SDXL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
LEVEL = "text_model."  # which transformers 5 takes out of CLIPTextModel, and nobody else

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
PROJECTION = "text_projection.weight"
NO_WEIGHTS = ("position_ids", "logit_scale", "attn_mask")  # places, and what training against pictures needs
FUSED = re.compile(r"(encoder\.layers\.\d+\.self_attn)\.([qkv])_proj\.(weight|bias)")
FUSED_THERE = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def clip_to_ldm(state: Mapping[str, Tensor], prefix: str = CLIP_PREFIX) -> dict[str, Tensor]:
    """A CLIP tower's tensors with a checkpoint's prefix and the level that transformers 5 dropped."""
    return {prefix + LEVEL + key.removeprefix(LEVEL): each for key, each in state.items()}


def clip_from_ldm(keys: Iterable[str], prefix: str = CLIP_PREFIX) -> dict[str, Source]:
    """Where a CLIP tower's tensors are in a checkpoint of these keys; very old ones lack the level below the prefix."""
    bare = {key.removeprefix(LEVEL): whole for key, whole in below(prefix, keys).items()}
    return {key: Source(whole) for key, whole in bare.items() if not key.endswith((*NO_WEIGHTS, PROJECTION))}


def open_clip_to_ldm(
    state: Mapping[str, Tensor], prefix: str = OPEN_CLIP_PREFIX, *, layers: int | None = None
) -> dict[str, Tensor]:
    """A text tower's tensors under OpenCLIP's names, queries, keys and values of a layer in one tensor.

    layers: how many the file is to have; those that are missing are copies of the last one. SD2 reads the last but one
    of 24, and diffusers keeps only those that are read.
    """
    state = {key.removeprefix(LEVEL): each for key, each in state.items()}
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
    keys: Iterable[str], prefix: str = OPEN_CLIP_PREFIX, *, layers: int | None = None, projected: bool = False
) -> dict[str, Source]:
    """Where a text tower's tensors are in a checkpoint of these keys, of the first so many layers if asked.

    projected: under the names of CLIPTextModelWithProjection, which keep the level; without it there is no projection.
    """
    bare = {key: whole for key, whole in below(prefix, keys).items() if not key.endswith(NO_WEIGHTS)}
    count = _layer_count(bare, r"transformer\.resblocks\.(\d+)\.")
    modules = {there: here for here, there in _modules(count).items()} | {PROJECTION: PROJECTION}
    plain = [key for key in bare if not FUSED_THERE.fullmatch(key)]
    named = {name: Source(bare[key], _straight(key)) for key, name in renamed(plain, modules).items()}
    for key, whole in bare.items():
        if found := FUSED_THERE.fullmatch(key):
            layer = f"encoder.layers.{found[1]}.self_attn"
            named |= {f"{layer}.{each}_proj.{found[2]}": Source(whole, part(3, n)) for n, each in enumerate("qkv")}
    unread = tuple(f"encoder.layers.{index}." for index in range(layers or count, count))
    read = {key: each for key, each in named.items() if not key.startswith(unread)}
    if projected:
        return {key if key == PROJECTION else LEVEL + key: each for key, each in read.items()}
    return {key: each for key, each in read.items() if key != PROJECTION}


def _straight(key: str) -> Callable[[Tensor], Tensor]:
    return turned if key == TRANSPOSED else unchanged


def _modules(layer_count: int) -> dict[str, str]:
    layers = {
        f"encoder.layers.{index}.{ours}": f"transformer.resblocks.{index}.{theirs}"
        for index in range(layer_count)
        for ours, theirs in LAYER.items()
    }
    return {**ENDS, **layers}


def _layer_count(keys: Iterable[str], pattern: str) -> int:
    return len({found[1] for key in keys if (found := re.match(pattern, key))})
