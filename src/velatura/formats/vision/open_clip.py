"""Folders of open_clip: open_clip_config.json beside the weights of both encoders, under OpenCLIP's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from velatura.errors import BadFile
from velatura.formats.checkpoints.folder_weights import open_weights
from velatura.formats.checkpoints.ldm_config import text_config
from velatura.formats.checkpoints.ldm_keys import count_indices, rename_keys
from velatura.formats.checkpoints.ldm_text import (
    FUSED_QKV_KEY,
    LAYER_NAMES,
    OPEN_CLIP_LAYER_NUMBER,
    open_clip_from_ldm,
)
from velatura.formats.checkpoints.tensor_sources import (
    TensorSource,
    TensorSources,
    apply_sources,
    identity,
    row_chunk,
    transpose,
)
from velatura.formats.json_files import read_json_object
from velatura.tensors import Contents, meta_tensors

OPEN_CLIP_CONFIG = "open_clip_config.json"
VISION_PREFIX, TEXT_PREFIX = "visual.", "text."  # CustomTextCLIP has the second one
# transformers' names of the image encoder's tensors, by OpenCLIP's below VISION_PREFIX
VISION_NAMES = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "proj": "visual_projection.weight",
    "conv1": "vision_model.embeddings.patch_embedding",
    "ln_pre": "vision_model.pre_layrnorm",
    "ln_post": "vision_model.post_layernorm",
}
VISION_PROJECTION_KEY = "visual_projection.weight"
DEFAULT_HEAD_WIDTH = 64  # open_clip's head_width where a configuration has none


@dataclass(frozen=True)
class OpenClipFolder:
    """What a folder of open_clip holds.

    Attributes:
        contents: The weights of both encoders.
        vision_config, text_config: Fields of transformers' CLIPVisionConfig and CLIPTextConfig.
        vision_sources, text_sources: The tensors of both encoders, by transformers' names.
        mean, std: By which red, green and blue are normalized; None where the folder has no numbers.
    """

    contents: Contents
    vision_config: dict[str, Any]
    text_config: dict[str, Any]
    vision_sources: TensorSources
    text_sources: TensorSources
    mean: object = None
    std: object = None


def is_open_clip_folder(path: Path) -> bool:
    """Return True for a folder of open_clip that is not one of transformers too."""
    return (path / OPEN_CLIP_CONFIG).is_file() and not (path / "config.json").is_file()


def read_open_clip_folder(path: Path) -> OpenClipFolder:
    """Read the configuration and the names of the tensors; no weight is read.

    Raises:
        BadFile: The configuration is missing or another model's (a ResNet, a ConvNeXt), or a tensor is unknown.
    """
    stored = read_json_object(path / OPEN_CLIP_CONFIG)
    model, preprocess = _as_object(stored.get("model_cfg")), _as_object(stored.get("preprocess_cfg"))
    vision, text = _as_object(model.get("vision_cfg")), _as_object(model.get("text_cfg"))
    if "timm_model_name" in vision or not isinstance(vision.get("layers"), int):
        raise BadFile(f"{path} has an image encoder that is not a vision transformer of CLIP: give a ViT's folder")
    if "hf_model_name" in text:
        raise BadFile(f"{path} has a text encoder that is not CLIP's: give the folder of another CLIP")
    contents = open_weights(path, "open_clip_model", "open_clip_pytorch_model")
    keys = list(contents.tensors)
    vision_sources = _vision_sources(keys)
    has_prefix = any(key.startswith(TEXT_PREFIX) for key in keys)
    text_keys = [key for key in keys if not key.startswith((VISION_PREFIX, "logit_"))]
    text_sources = open_clip_from_ldm(text_keys, TEXT_PREFIX if has_prefix else "", has_projection=True)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    shapes = meta_tensors(contents.tensors)
    return OpenClipFolder(
        contents,
        _vision_config(apply_sources(vision_sources, shapes), vision, path) | {"hidden_act": activation},
        _text_config(apply_sources(text_sources, shapes), text) | {"hidden_act": activation},
        vision_sources,
        text_sources,
        preprocess.get("mean"),
        preprocess.get("std"),
    )


def _vision_sources(keys: Iterable[str]) -> dict[str, TensorSource]:
    file_keys = {key.removeprefix(VISION_PREFIX): key for key in keys if key.startswith(VISION_PREFIX)}
    modules = dict(VISION_NAMES)
    for index in range(count_indices(file_keys, OPEN_CLIP_LAYER_NUMBER)):
        modules |= {
            f"transformer.resblocks.{index}.{open_clip_part}": f"vision_model.encoder.layers.{index}.{part}"
            for part, open_clip_part in LAYER_NAMES.items()
        }
    others = [key for key in file_keys if not FUSED_QKV_KEY.fullmatch(key)]
    sources = {
        name: TensorSource(file_keys[key], transpose if name == VISION_PROJECTION_KEY else identity)
        for key, name in rename_keys(others, modules).items()
    }
    for key, file_key in file_keys.items():
        match = FUSED_QKV_KEY.fullmatch(key)
        if match is None:
            continue
        for index, letter in enumerate("qkv"):
            name = f"vision_model.encoder.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}"
            sources[name] = TensorSource(file_key, row_chunk(3, index))
    return sources


def _vision_config(shapes: Mapping[str, Tensor], vision: Mapping[str, object], path: Path) -> dict[str, Any]:
    """Return the image encoder's settings: sizes from the shapes, the width of a head from the configuration."""
    prefix = "vision_model.embeddings."
    needed = (f"{prefix}patch_embedding.weight", f"{prefix}position_embedding.weight", VISION_PROJECTION_KEY)
    missing = [key for key in needed if key not in shapes]
    if missing:
        raise BadFile(f"{path} lacks {missing[0]}, which CLIP's image encoder needs: download the whole folder")
    patch, positions, projection = (shapes[key] for key in needed)
    width, patch_size = patch.shape[0], patch.shape[-1]
    side = round((positions.shape[0] - 1) ** 0.5)
    return {
        "hidden_size": width,
        "patch_size": patch_size,
        "image_size": side * patch_size,
        "projection_dim": projection.shape[0],
        "num_hidden_layers": count_indices(shapes, r"vision_model\.encoder\.layers\.(\d+)\."),
        "intermediate_size": shapes["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_attention_heads": max(1, width // _integer(vision.get("head_width"), DEFAULT_HEAD_WIDTH)),
    }


def _text_config(shapes: Mapping[str, Tensor], text: Mapping[str, object]) -> dict[str, Any]:
    config: dict[str, Any] = dict(text_config(shapes))
    heads = _integer(text.get("heads"), max(1, config["hidden_size"] // DEFAULT_HEAD_WIDTH))
    return config | {"num_attention_heads": heads}


def _integer(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default


def _as_object(value: object) -> dict[str, object]:
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
