"""Hints: settings of models that do not follow from the shapes of their tensors, such as the number of heads.

They come from a config.json, from the metadata of a checkpoint that velatura wrote, or from the family.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from velatura.base.model_settings import MAX_CONFIG_NUMBER
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.checkpoints.ldm_config import (
    ModelConfig,
    text_config,
    unet_config,
    vae_config,
)
from velatura.imports import import_model_libraries

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

CONFIG_HINTS_KEY = "velatura.base"  # in the metadata of checkpoints

# Hints of the families where they differ from the libraries' defaults, from the published models
CONFIG_HINTS: dict[str, dict[str, ModelConfig]] = {
    "SD1": {
        "unet": {"sample_size": 64},
        "vae": {"sample_size": 512},
        "text": {"num_attention_heads": 12, "projection_dim": 768},
    },
    "SD2": {
        "unet": {"attention_head_dim": [5, 10, 20, 20], "sample_size": 96},
        "vae": {"sample_size": 768},
        "text": {"num_attention_heads": 16, "hidden_act": "gelu"},
    },
    "SDXL": {
        "unet": {"attention_head_dim": [5, 10, 20], "sample_size": 128},
        "vae": {"sample_size": 1024, "scaling_factor": 0.13025},
        "text": {"num_attention_heads": 12, "projection_dim": 768},
        "text_2": {"num_attention_heads": 20, "hidden_act": "gelu"},
    },
}
TEXT_PARTS = ("text", "text_2")  # in the order in which SDXL concatenates their hidden states
TEXT_HINTS = (
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "projection_dim",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# The hints that a file may state: none of them could make a small file ask for a large model.
ALLOWED_HINTS = {
    "unet": (
        "attention_head_dim",
        "num_attention_heads",
        "norm_num_groups",
        "norm_eps",
        "sample_size",
        "act_fn",
        "upcast_attention",
        "flip_sin_to_cos",
        "freq_shift",
        "center_input_sample",
        "downsample_padding",
    ),
    "vae": ("norm_num_groups", "sample_size", "scaling_factor", "act_fn", "force_upcast"),
    "text": TEXT_HINTS,
    "text_2": TEXT_HINTS,
}
OLD_TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 2}  # before transformers 4.30, where CLIP's own ids were meant


def config_hints(
    unet: UNet2DConditionModel, vae: AutoencoderKL, text_encoders: Sequence[nn.Module]
) -> dict[str, ModelConfig]:
    """Return the hints of a base's models that differ from the libraries' defaults, by part.

    Raises:
        UnsupportedBase: A setting outside ALLOWED_HINTS, with which the base could not be read again.
    """
    pooled_width = 0
    if unet.config.get("addition_embed_type") is not None:
        pooled_width = _encoder_config(text_encoders[-1]).projection_dim
    hints = {
        "unet": _non_default_config("unet", dict(unet.config), unet_config(unet.state_dict(), pooled_width)),
        "vae": _non_default_config("vae", dict(vae.config), vae_config(vae.state_dict())),
        **{part: _non_default_text_config(encoder) for part, encoder in zip(TEXT_PARTS, text_encoders, strict=False)},
    }
    for part, config in hints.items():
        if unsupported := config.keys() - set(ALLOWED_HINTS[part]):
            raise UnsupportedBase(
                f"its {part} has the setting {min(unsupported)}, which a checkpoint cannot store: save the base as a "
                "folder"
            )
    return hints


def read_config_hints(part: str, stored: ModelConfig, from_shapes: ModelConfig, name: str) -> ModelConfig:
    """Return the hints in a config.json that differ from the library's defaults.

    Args:
        part: "unet", "vae" or "text".
        stored: The config.json.
        from_shapes: Settings that follow from the shapes, which are not hints.
        name: Name of the base, for messages.

    Raises:
        UnsupportedBase: A setting outside ALLOWED_HINTS that differs from the default.
        BadFile: A number out of range.
    """
    defaults = _defaults(part)
    remaining = {key: value for key, value in stored.items() if key in defaults and key not in from_shapes}
    non_default = {key: value for key, value in remaining.items() if _as_json(value) != _as_json(defaults[key])}
    # a text encoder's config.json also has transformers' general settings, which do not change what CLIP computes
    if part != "text" and (unsupported := non_default.keys() - set(ALLOWED_HINTS[part])):
        raise UnsupportedBase(
            f"{name} has the setting {min(unsupported)} in its {part}, which velatura does not support: open another"
        )
    return check_config_hints(name, {part: non_default}, [part])[part]


def check_config_hints(name: str, stored: object, parts: Iterable[str]) -> dict[str, ModelConfig]:
    """Return the hints that a file states, without those outside ALLOWED_HINTS.

    Args:
        name: Name of the file, for messages.
        stored: Parsed JSON of a stranger's file: settings by part.
        parts: The parts that must be there.

    Raises:
        BadFile: A part is missing, or a number is out of range.
    """
    stored_hints = cast("dict[str, ModelConfig]", stored) if isinstance(stored, dict) else {}
    if not all(isinstance(stored_hints.get(part), dict) for part in parts):
        raise BadFile(f"{name} has damaged settings in its metadata: save the base again")
    hints = {
        part: {key: value for key, value in stored_hints[part].items() if key in ALLOWED_HINTS[part]} for part in parts
    }
    for part, config in hints.items():
        for key, value in config.items():
            if isinstance(value, float) and not 0 < value < MAX_CONFIG_NUMBER:
                raise BadFile(f"{name} says that {key} of its {part} is {value}, which is out of range: save it again")
    return hints


def _encoder_config(encoder: nn.Module) -> Any:
    return encoder.config


def _non_default_text_config(encoder: nn.Module) -> ModelConfig:
    config, defaults, from_shapes = _encoder_config(encoder), _defaults("text"), text_config(encoder.state_dict())
    stored = {key: getattr(config, key) for key in ALLOWED_HINTS["text"] if key not in from_shapes}
    if stored["eos_token_id"] == OLD_TOKEN_IDS["eos_token_id"]:
        stored = {key: value for key, value in stored.items() if key not in {*OLD_TOKEN_IDS, "pad_token_id"}}
    return {key: value for key, value in stored.items() if value != defaults[key]}


def _non_default_config(part: str, config: Mapping[str, Any], from_shapes: ModelConfig) -> ModelConfig:
    defaults = _defaults(part)
    remaining = {key: value for key, value in config.items() if key in defaults and key not in from_shapes}
    return {key: value for key, value in remaining.items() if _as_json(value) != _as_json(defaults[key])}


def _defaults(part: str) -> ModelConfig:
    """Return the library's default settings of a model: "unet", "vae" or "text"."""
    import_model_libraries()
    if part == "text":
        from transformers import CLIPTextConfig

        return CLIPTextConfig().to_dict()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    model_class = UNet2DConditionModel if part == "unet" else AutoencoderKL
    return {name: parameter.default for name, parameter in inspect.signature(model_class).parameters.items()}


def _as_json(value: object) -> object:
    """Return a setting as JSON gives it back: a tuple as a list."""
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else value
