"""Configurations of models: most settings follow from the shapes of their tensors, the rest are called hints.

Hints are settings such as the number of attention heads. They come from a config.json, from the metadata of a
checkpoint that velatura wrote, or from the family.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig

from velatura.base.families import Family, Prediction, find_family
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.checkpoints.ldm_keys import UNetLayout, count_indices
from velatura.formats.checkpoints.ldm_text import PROJECTION_KEY, TEXT_MODEL_PREFIX

ModelConfig = dict[str, Any]
StateDict = Mapping[str, Tensor]

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
MODEL_CLASSES = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text": CLIPTextConfig}
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
MAX_CONFIG_NUMBER = 8192  # the largest that is used is a side of pictures in pixels
OLD_TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 2}  # before transformers 4.30, where CLIP's own ids were meant
TIME_ID_COUNT = 6  # SDXL: original height and width, top and left of the crop, target height and width


def unet_config(state: StateDict, pooled_width: int = 0) -> ModelConfig:
    """Derive the configuration of a UNet from the shapes of its tensors.

    Args:
        state: Tensors under diffusers' names, on the meta device or any other.
        pooled_width: Features of the pooled text embedding that SDXL's UNet reads beside the sizes; 0 if unknown.

    Returns:
        Fields of UNet2DConditionModel.

    Raises:
        BadFile: The UNet's added embedding does not fit a pooled embedding of that width.
    """
    layout = UNetLayout.from_diffusers(state)
    levels = range(len(layout.attends_down))
    depths = [
        count_indices(state, rf"down_blocks\.{level}\.attentions\.0\.transformer_blocks\.(\d+)\.") or 1
        for level in levels
    ]
    cross_attention_dim = next(tensor.shape[1] for key, tensor in state.items() if key.endswith("attn2.to_k.weight"))
    proj_in = next(tensor for key, tensor in state.items() if key.endswith("proj_in.weight"))
    return {
        "in_channels": state["conv_in.weight"].shape[1],
        "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": [state[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels],
        "layers_per_block": layout.layers,
        "down_block_types": ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in layout.attends_down],
        "up_block_types": ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in layout.attends_up],
        "cross_attention_dim": cross_attention_dim,
        "transformer_layers_per_block": depths if len(set(depths)) > 1 else depths[0],
        "use_linear_projection": proj_in.ndim == 2,
        **_addition_config(state, pooled_width),
    }


def _addition_config(state: StateDict, pooled_width: int) -> ModelConfig:
    """Return the settings of SDXL's added embedding, through which its UNet reads the pooled text and the sizes."""
    if "add_embedding.linear_1.weight" not in state:
        return {}
    width = state["add_embedding.linear_1.weight"].shape[1]
    if pooled_width and (width <= pooled_width or (width - pooled_width) % TIME_ID_COUNT):
        raise BadFile(
            f"the UNet's added embedding has {width} features, which does not fit pooled embeddings of {pooled_width}: "
            "this is not an SDXL"
        )
    return {
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": width,
        "addition_time_embed_dim": (width - pooled_width) // TIME_ID_COUNT,
    }


def vae_config(state: StateDict) -> ModelConfig:
    """Derive fields of AutoencoderKL from the shapes of its tensors under diffusers' names."""
    levels = range(count_indices(state, r"encoder\.down_blocks\.(\d+)\."))
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [
            state[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels
        ],
        "layers_per_block": count_indices(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
        "mid_block_add_attention": any(".mid_block.attentions." in key for key in state),
    }


def text_config(state: StateDict) -> ModelConfig:
    """Derive fields of CLIPTextConfig from the shapes of a text encoder's tensors under transformers' names."""
    projection = {"projection_dim": state[PROJECTION_KEY].shape[0]} if PROJECTION_KEY in state else {}
    state = {key.removeprefix(TEXT_MODEL_PREFIX): tensor for key, tensor in state.items()}
    token_embedding = state["embeddings.token_embedding.weight"]
    position_embedding = state["embeddings.position_embedding.weight"]
    return {
        **projection,
        "vocab_size": token_embedding.shape[0],
        "hidden_size": token_embedding.shape[1],
        "max_position_embeddings": position_embedding.shape[0],
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count_indices(state, r"encoder\.layers\.(\d+)\."),
    }


def determine_family(unet: ModelConfig, vae: ModelConfig, prediction: Prediction) -> Family:
    """Return the family that a base belongs to by its context widths, with this base's own settings.

    Args:
        unet: Fields of UNet2DConditionModel.
        vae: Fields of AutoencoderKL.
        prediction: What the UNet predicts.

    Returns:
        The known family of these widths, or one named "unknown", with the scaling factors, picture size and prediction
        of this base.

    Raises:
        BadFile: The size of pictures is out of range.
    """
    block_widths: list[int] = unet["block_out_channels"]
    block_types: list[str] = unet["down_block_types"]
    attention_widths = [
        width for width, block_type in zip(block_widths, block_types, strict=True) if "Attn" in block_type
    ]
    widths = dict.fromkeys([*attention_widths, block_widths[-1]])
    vae_scale_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    pixels = int(unet.get("sample_size") or 64) * vae_scale_factor
    if not 0 < pixels <= MAX_CONFIG_NUMBER:
        raise BadFile(f"a base for pictures of {pixels} pixels is not a Stable Diffusion: download it again")
    cross_width: int = unet["cross_attention_dim"]
    new_family = Family("unknown", cross_width, tuple(widths), vae_scale_factor, 1.0, pixels, prediction)
    scale = float(vae.get("scaling_factor", 0.18215))
    family = find_family(cross_width, widths) or new_family
    return replace(
        family, vae_scale_factor=vae_scale_factor, scaling_factor=scale, default_pixels=pixels, prediction=prediction
    )


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
        "unet": _non_default_config(
            UNet2DConditionModel, dict(unet.config), unet_config(unet.state_dict(), pooled_width)
        ),
        "vae": _non_default_config(AutoencoderKL, dict(vae.config), vae_config(vae.state_dict())),
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
        from_shapes: Settings that follow from the shapes, which are no hints.
        name: Name of the base, for messages.

    Raises:
        UnsupportedBase: A setting outside ALLOWED_HINTS that differs from the default.
        BadFile: A number out of range.
    """
    defaults = _defaults(MODEL_CLASSES[part])
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
    config, defaults, from_shapes = _encoder_config(encoder), CLIPTextConfig(), text_config(encoder.state_dict())
    stored = {key: getattr(config, key) for key in ALLOWED_HINTS["text"] if key not in from_shapes}
    if stored["eos_token_id"] == OLD_TOKEN_IDS["eos_token_id"]:
        stored = {key: value for key, value in stored.items() if key not in {*OLD_TOKEN_IDS, "pad_token_id"}}
    return {key: value for key, value in stored.items() if value != getattr(defaults, key)}


def _non_default_config(model_class: type[object], config: Mapping[str, Any], from_shapes: ModelConfig) -> ModelConfig:
    defaults = _defaults(model_class)
    remaining = {key: value for key, value in config.items() if key in defaults and key not in from_shapes}
    return {key: value for key, value in remaining.items() if _as_json(value) != _as_json(defaults[key])}


def _defaults(model_class: type[object]) -> ModelConfig:
    if model_class is CLIPTextConfig:
        return CLIPTextConfig().to_dict()
    return {name: parameter.default for name, parameter in inspect.signature(model_class).parameters.items()}


def _as_json(value: object) -> object:
    """Return a setting as JSON gives it back: a tuple as a list."""
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else value
