"""What single-file checkpoints call the tensors of text towers: CLIP's as transformers does, OpenCLIP's as OpenCLIP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from velatura.formats.checkpoints.ldm_keys import keys_below, rename_keys
from velatura.formats.checkpoints.tensor_sources import TensorSource, identity, row_chunk, transpose

CLIP_PREFIX = "cond_stage_model.transformer."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer."
SDXL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
TEXT_MODEL_PREFIX = "text_model."  # which transformers 5 takes out of CLIPTextModel, and nobody else

# transformers' name, OpenCLIP's
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
TRANSPOSED_KEY = "text_projection"  # OpenCLIP multiplies from the left
PROJECTION_KEY = "text_projection.weight"
NON_WEIGHTS = ("position_ids", "logit_scale", "attn_mask")  # places, and what training against pictures needs
QKV_KEY = re.compile(r"(encoder\.layers\.\d+\.self_attn)\.([qkv])_proj\.(weight|bias)")
FUSED_QKV_KEY = re.compile(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def clip_to_ldm(state: Mapping[str, Tensor], prefix: str = CLIP_PREFIX) -> dict[str, Tensor]:
    """A CLIP tower's tensors with a checkpoint's prefix and the level that transformers 5 dropped."""
    return {prefix + TEXT_MODEL_PREFIX + key.removeprefix(TEXT_MODEL_PREFIX): tensor for key, tensor in state.items()}


def clip_from_ldm(keys: Iterable[str], prefix: str = CLIP_PREFIX) -> dict[str, TensorSource]:
    """Where a CLIP tower's tensors are in a checkpoint of these keys; very old ones lack the level below the prefix."""
    file_keys = {key.removeprefix(TEXT_MODEL_PREFIX): file_key for key, file_key in keys_below(prefix, keys).items()}
    return {
        key: TensorSource(file_key)
        for key, file_key in file_keys.items()
        if not key.endswith((*NON_WEIGHTS, PROJECTION_KEY))
    }


def open_clip_to_ldm(
    state: Mapping[str, Tensor], prefix: str = OPEN_CLIP_PREFIX, *, layers: int | None = None
) -> dict[str, Tensor]:
    """A text tower's tensors under OpenCLIP's names, queries, keys and values of a layer in one tensor.

    layers: how many the file is to have; those that are missing are copies of the last one. SD2 reads the last but one
    of 24, and diffusers keeps only those that are read.
    """
    state = {key.removeprefix(TEXT_MODEL_PREFIX): tensor for key, tensor in state.items()}
    other_tensors = {key: tensor for key, tensor in state.items() if not QKV_KEY.fullmatch(key)}
    count = _layer_count(state, r"encoder\.layers\.(\d+)\.")
    tensors = {name: other_tensors[key] for key, name in rename_keys(other_tensors, _module_names(count)).items()}
    for index in range(count):
        for parameter in ("weight", "bias"):
            parts = [state[f"encoder.layers.{index}.self_attn.{letter}_proj.{parameter}"] for letter in "qkv"]
            tensors[f"transformer.resblocks.{index}.attn.in_proj_{parameter}"] = torch.cat(parts)
    last = f"transformer.resblocks.{count - 1}."
    for index in range(count, layers or count):
        copies = {key: tensor for key, tensor in tensors.items() if key.startswith(last)}
        tensors |= {
            key.replace(last, f"transformer.resblocks.{index}."): tensor.clone() for key, tensor in copies.items()
        }
    return {prefix + key: tensor.T.contiguous() if key == TRANSPOSED_KEY else tensor for key, tensor in tensors.items()}


def open_clip_from_ldm(
    keys: Iterable[str], prefix: str = OPEN_CLIP_PREFIX, *, layers: int | None = None, has_projection: bool = False
) -> dict[str, TensorSource]:
    """Where a text tower's tensors are in a checkpoint of these keys, of the first so many layers if asked.

    projected: under the names of CLIPTextModelWithProjection, which keep the level; without it there is no projection.
    """
    file_keys = {key: file_key for key, file_key in keys_below(prefix, keys).items() if not key.endswith(NON_WEIGHTS)}
    count = _layer_count(file_keys, r"transformer\.resblocks\.(\d+)\.")
    modules = {open_clip_name: name for name, open_clip_name in _module_names(count).items()} | {
        PROJECTION_KEY: PROJECTION_KEY
    }
    other_keys = [key for key in file_keys if not FUSED_QKV_KEY.fullmatch(key)]
    sources = {
        name: TensorSource(file_keys[key], _change_of(key)) for key, name in rename_keys(other_keys, modules).items()
    }
    for key, file_key in file_keys.items():
        if match := FUSED_QKV_KEY.fullmatch(key):
            layer = f"encoder.layers.{match[1]}.self_attn"
            sources |= {
                f"{layer}.{letter}_proj.{match[2]}": TensorSource(file_key, row_chunk(3, index))
                for index, letter in enumerate("qkv")
            }
    unread_layers = tuple(f"encoder.layers.{index}." for index in range(layers or count, count))
    read_sources = {key: source for key, source in sources.items() if not key.startswith(unread_layers)}
    if has_projection:
        return {
            key if key == PROJECTION_KEY else TEXT_MODEL_PREFIX + key: source for key, source in read_sources.items()
        }
    return {key: source for key, source in read_sources.items() if key != PROJECTION_KEY}


def _change_of(key: str) -> Callable[[Tensor], Tensor]:
    return transpose if key == TRANSPOSED_KEY else identity


def _module_names(layer_count: int) -> dict[str, str]:
    layers = {
        f"encoder.layers.{index}.{clip_part}": f"transformer.resblocks.{index}.{open_clip_part}"
        for index in range(layer_count)
        for clip_part, open_clip_part in LAYER_NAMES.items()
    }
    return {**OUTER_NAMES, **layers}


def _layer_count(keys: Iterable[str], pattern: str) -> int:
    return len({match[1] for key in keys if (match := re.match(pattern, key))})
