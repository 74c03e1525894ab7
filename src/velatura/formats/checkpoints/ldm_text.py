"""Translate the names of text encoders' tensors: transformers', and CLIP's and OpenCLIP's of checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product

import torch
from torch import Tensor

from velatura.formats.checkpoints.ldm_keys import count_indices, keys_below, rename_keys
from velatura.formats.checkpoints.tensor_sources import TensorSource, identity, row_chunk, transpose

CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
SDXL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
TEXT_MODEL_PREFIX = "text_model."  # CLIPTextModel has lacked this level since transformers 5; other programs keep it

# OpenCLIP's names by transformers'
OUTER_NAMES = {
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm": "ln_final",
    "text_projection.weight": "text_projection",
}
LAYER_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
TRANSPOSED_KEY = "text_projection"  # OpenCLIP multiplies x @ W, transformers x @ W.T
PROJECTION_KEY = "text_projection.weight"
NON_WEIGHTS = ("position_ids", "logit_scale", "attn_mask")  # positions, and what only contrastive training needs
QKV_KEY = re.compile(r"(encoder\.layers\.\d+\.self_attn)\.([qkv])_proj\.(weight|bias)")
LAYER_NUMBER = r"encoder\.layers\.(\d+)\."
OPEN_CLIP_LAYER_NUMBER = r"transformer\.resblocks\.(\d+)\."
FUSED_QKV_KEY = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def clip_to_ldm(state: Mapping[str, Tensor], prefix: str = CLIP_PREFIX) -> dict[str, Tensor]:
    """Return a CLIP text encoder's tensors under a checkpoint's names, with the level "text_model."."""
    return {prefix + TEXT_MODEL_PREFIX + key.removeprefix(TEXT_MODEL_PREFIX): tensor for key, tensor in state.items()}


def clip_from_ldm(keys: Iterable[str], prefix: str = CLIP_PREFIX) -> dict[str, TensorSource]:
    """Return the sources of a CLIP text encoder's tensors in a checkpoint, which may lack the level "text_model."."""
    file_keys = {key.removeprefix(TEXT_MODEL_PREFIX): file_key for key, file_key in keys_below(prefix, keys).items()}
    return {
        key: TensorSource(file_key)
        for key, file_key in file_keys.items()
        if not key.endswith((*NON_WEIGHTS, PROJECTION_KEY))
    }


def open_clip_to_ldm(
    state: Mapping[str, Tensor], prefix: str = OPEN_CLIP_PREFIX, *, layers: int | None = None
) -> dict[str, Tensor]:
    """Return a text encoder's tensors under OpenCLIP's names, with a layer's queries, keys and values in one tensor.

    Args:
        state: Tensors under transformers' names.
        prefix: Prefix of the names in the checkpoint.
        layers: Number of layers in the file. Missing ones become copies of the last: SD2 uses 23 of OpenCLIP's 24
            layers and diffusers stores only those, but single-file checkpoints have 24.
    """
    state = {key.removeprefix(TEXT_MODEL_PREFIX): tensor for key, tensor in state.items()}
    other_tensors = {key: tensor for key, tensor in state.items() if not QKV_KEY.fullmatch(key)}
    count = count_indices(state, LAYER_NUMBER)
    tensors = {name: other_tensors[key] for key, name in rename_keys(other_tensors, _module_names(count)).items()}
    tensors |= _fuse_qkv(state, count)
    tensors |= _copy_last_layer(tensors, count, layers or count)
    return {prefix + key: tensor.T.contiguous() if key == TRANSPOSED_KEY else tensor for key, tensor in tensors.items()}


def _fuse_qkv(state: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return the fused projections of all layers, under OpenCLIP's names."""
    fused: dict[str, Tensor] = {}
    for index, parameter in product(range(count), ("weight", "bias")):
        parts = [state[f"encoder.layers.{index}.self_attn.{letter}_proj.{parameter}"] for letter in "qkv"]
        fused[f"transformer.resblocks.{index}.attn.in_proj_{parameter}"] = torch.cat(parts)
    return fused


def _copy_last_layer(tensors: Mapping[str, Tensor], count: int, wanted_count: int) -> dict[str, Tensor]:
    """Return copies of the last layer as the layers from count to wanted_count."""
    last = f"transformer.resblocks.{count - 1}."
    last_layer = {key.removeprefix(last): tensor for key, tensor in tensors.items() if key.startswith(last)}
    return {
        f"transformer.resblocks.{index}.{key}": tensor.clone()
        for index in range(count, wanted_count)
        for key, tensor in last_layer.items()
    }


def open_clip_from_ldm(
    keys: Iterable[str], prefix: str = OPEN_CLIP_PREFIX, *, layers: int | None = None, has_projection: bool = False
) -> dict[str, TensorSource]:
    """Return the sources of an OpenCLIP text encoder's tensors in a checkpoint.

    Args:
        keys: All keys of the checkpoint.
        prefix: Prefix of the text encoder's names.
        layers: Number of the first layers to take; None takes all.
        has_projection: Use the names of CLIPTextModelWithProjection, which keep the level "text_model.". Otherwise the
            names are CLIPTextModel's and the projection is left out.

    Raises:
        BadFile: A key below the prefix is not an OpenCLIP text encoder's.
    """
    file_keys = {key: file_key for key, file_key in keys_below(prefix, keys).items() if not key.endswith(NON_WEIGHTS)}
    count = count_indices(file_keys, OPEN_CLIP_LAYER_NUMBER)
    sources = _open_clip_sources(file_keys, count)
    unused_layers = tuple(f"encoder.layers.{index}." for index in range(layers or count, count))
    used_sources = {key: source for key, source in sources.items() if not key.startswith(unused_layers)}
    if has_projection:
        return {
            key if key == PROJECTION_KEY else TEXT_MODEL_PREFIX + key: source for key, source in used_sources.items()
        }
    return {key: source for key, source in used_sources.items() if key != PROJECTION_KEY}


def _open_clip_sources(file_keys: Mapping[str, str], count: int) -> dict[str, TensorSource]:
    """Return the sources of all tensors, by transformers' names without "text_model."."""
    modules = {open_clip_name: name for name, open_clip_name in _module_names(count).items()}
    modules[PROJECTION_KEY] = PROJECTION_KEY
    other_keys = [key for key in file_keys if not FUSED_QKV_KEY.fullmatch(key)]
    sources = {
        name: TensorSource(file_keys[key], transpose if key == TRANSPOSED_KEY else identity)
        for key, name in rename_keys(other_keys, modules).items()
    }
    for key, file_key in file_keys.items():
        match = FUSED_QKV_KEY.fullmatch(key)
        if match is None:
            continue
        for index, letter in enumerate("qkv"):
            name = f"encoder.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}"
            sources[name] = TensorSource(file_key, row_chunk(3, index))
    return sources


def _module_names(layer_count: int) -> dict[str, str]:
    layers = {
        f"encoder.layers.{index}.{clip_part}": f"transformer.resblocks.{index}.{open_clip_part}"
        for index in range(layer_count)
        for clip_part, open_clip_part in LAYER_NAMES.items()
    }
    return {**OUTER_NAMES, **layers}
