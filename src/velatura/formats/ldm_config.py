"""The configurations of models, read off the shapes of their tensors; what these do not tell, a family does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig

from velatura.base.families import Family, Prediction, recognise
from velatura.formats.ldm_keys import UNetLayout

Settings = dict[str, Any]
State = Mapping[str, Tensor]

# What shapes do not tell, where it is not what the libraries take by default. From the families' published models.
HINTS: dict[str, dict[str, Settings]] = {
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
}
TEXT_HINTS = (
    *("num_attention_heads", "hidden_act", "layer_norm_eps", "projection_dim"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)


def unet_config(state: State) -> Settings:
    """What the shapes of a UNet under diffusers' names tell of its configuration."""
    layout = UNetLayout.of_diffusers(state)
    levels = range(len(layout.attends_down))
    depths = [_numbered(state, f"down_blocks.{level}.attentions.0.transformer_blocks") or 1 for level in levels]
    cross = next(each.shape[1] for key, each in state.items() if key.endswith("attn2.to_k.weight"))
    entry = next(each for key, each in state.items() if key.endswith("proj_in.weight"))
    return {
        "in_channels": state["conv_in.weight"].shape[1],
        "out_channels": state["conv_out.weight"].shape[0],
        "block_out_channels": [state[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels],
        "layers_per_block": layout.layers,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in layout.attends_down],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in layout.attends_up],
        "cross_attention_dim": cross,
        "transformer_layers_per_block": depths if len(set(depths)) > 1 else depths[0],
        "use_linear_projection": entry.ndim == 2,
    }


def vae_config(state: State) -> Settings:
    """What the shapes of an autoencoder under diffusers' names tell of its configuration."""
    levels = range(_numbered(state, "encoder.down_blocks"))
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
        "block_out_channels": [state[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in levels],
        "layers_per_block": _numbered(state, "encoder.down_blocks.0.resnets"),
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
    }


def text_config(state: State) -> Settings:
    """What the shapes of a CLIP text tower under transformers' names tell of its configuration."""
    words, places = (state[f"embeddings.{each}_embedding.weight"] for each in ("token", "position"))
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "max_position_embeddings": places.shape[0],
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _numbered(state, "encoder.layers"),
    }


def family_of(unet: Settings, vae: Settings, prediction: Prediction) -> Family:
    """The family that a base's widths belong to, with its own scale, size and prediction; a new one where none fits."""
    blocks: list[int] = unet["block_out_channels"]
    kinds: list[str] = unet["down_block_types"]
    attending = [width for width, kind in zip(blocks, kinds, strict=True) if "Attn" in kind]
    widths = dict.fromkeys([*attending, blocks[-1]])
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    pixels = int(unet.get("sample_size") or 64) * factor
    cross: int = unet["cross_attention_dim"]
    own = Family("unknown", cross, tuple(widths), factor, 1.0, pixels, prediction)
    scale = float(vae.get("scaling_factor", 0.18215))
    found = recognise(cross, widths) or own
    return replace(found, latent_factor=factor, latent_scale=scale, default_pixels=pixels, prediction=prediction)


def unet_hints(model: UNet2DConditionModel) -> Settings:
    """What the shapes of a UNet do not tell and is not the library's default."""
    return _hints(type(model), dict(model.config), unet_config(model.state_dict()))


def vae_hints(model: AutoencoderKL) -> Settings:
    """What the shapes of an autoencoder do not tell and is not the library's default."""
    return _hints(type(model), dict(model.config), vae_config(model.state_dict()))


def text_hints(config: CLIPTextConfig) -> Settings:
    """What the shapes of a CLIP text tower do not tell and is not the library's default."""
    default, given = CLIPTextConfig(), config.to_dict()
    return {key: given[key] for key in TEXT_HINTS if given[key] != getattr(default, key)}


def _hints(kind: type[object], given: Mapping[str, Any], told: Settings) -> Settings:
    defaults = {name: each.default for name, each in inspect.signature(kind).parameters.items()}
    untold = {key: each for key, each in given.items() if key in defaults and key not in told}
    return {key: each for key, each in untold.items() if _plain(each) != _plain(defaults[key])}


def _plain(value: object) -> object:
    """A setting as JSON gives it back."""
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else value


def _numbered(state: State, prefix: str) -> int:
    """How many modules there are of this name, numbered from 0."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({found[1] for key in state if (found := pattern.match(key))})
