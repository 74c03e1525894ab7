"""The configurations of models, read off the shapes of their tensors; what these do not tell, a family does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig

from velatura.base.families import Family, Prediction, recognise
from velatura.errors import BadFile, UnsupportedBase
from velatura.formats.ldm_keys import UNetLayout
from velatura.formats.ldm_text import LEVEL, PROJECTION

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
    "SDXL": {
        "unet": {"attention_head_dim": [5, 10, 20], "sample_size": 128},
        "vae": {"sample_size": 1024, "scaling_factor": 0.13025},
        "text": {"num_attention_heads": 12, "projection_dim": 768},
        "text_2": {"num_attention_heads": 20, "hidden_act": "gelu"},
    },
}
KINDS_OF_MODELS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text": CLIPTextConfig}
TEXTS = ("text", "text_2")  # the parts that are text towers, in the order in which their vectors are joined
# What a file may say that shapes do not tell: nothing by which a few words could ask for a model of any size.
TOLD = {
    "unet": (
        *("attention_head_dim", "num_attention_heads", "norm_num_groups", "norm_eps", "sample_size", "act_fn"),
        *("upcast_attention", "flip_sin_to_cos", "freq_shift", "center_input_sample", "downsample_padding"),
    ),
    "vae": ("norm_num_groups", "sample_size", "scaling_factor", "act_fn", "force_upcast"),
    **dict.fromkeys(
        ("text", "text_2"),
        (
            *("num_attention_heads", "hidden_act", "layer_norm_eps", "projection_dim"),
            *("bos_token_id", "eos_token_id", "pad_token_id"),
        ),
    ),
}
LARGEST = 8192  # pixels along a side
OLD_IDS = {"bos_token_id": 0, "eos_token_id": 2}  # of configurations before transformers 4.30, which meant CLIP's
SIZES_TOLD = 6  # an SDXL is told height and width of the original, of the crop's place and of the picture


def unet_config(state: State, pooled_width: int = 0) -> Settings:
    """What the shapes of a UNet under diffusers' names tell of its configuration.

    pooled_width: features of the prompt as one vector, which an SDXL's UNet reads together with the sizes.
    """
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
        **_addition(state, pooled_width),
    }


def _addition(state: State, pooled_width: int) -> Settings:
    """How an SDXL's UNet is told the prompt as one vector and the sizes of the picture."""
    if "add_embedding.linear_1.weight" not in state:
        return {}
    width = state["add_embedding.linear_1.weight"].shape[1]
    if pooled_width and (width <= pooled_width or (width - pooled_width) % SIZES_TOLD):
        raise BadFile(f"a UNet that is told {width} features does not belong to prompts of {pooled_width}: no SDXL")
    return {
        "addition_embed_type": "text_time",
        "projection_class_embeddings_input_dim": width,
        "addition_time_embed_dim": (width - pooled_width) // SIZES_TOLD,
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
        "mid_block_add_attention": any(".mid_block.attentions." in key for key in state),
    }


def text_config(state: State) -> Settings:
    """What the shapes of a CLIP text tower under transformers' names tell of its configuration."""
    projection = {"projection_dim": state[PROJECTION].shape[0]} if PROJECTION in state else {}
    state = {key.removeprefix(LEVEL): each for key, each in state.items()}
    words, places = (state[f"embeddings.{each}_embedding.weight"] for each in ("token", "position"))
    return {
        **projection,
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
    if not 0 < pixels <= LARGEST:
        raise BadFile(f"a base for pictures of {pixels} pixels is no Stable Diffusion: download it again")
    cross: int = unet["cross_attention_dim"]
    own = Family("unknown", cross, tuple(widths), factor, 1.0, pixels, prediction)
    scale = float(vae.get("scaling_factor", 0.18215))
    found = recognise(cross, widths) or own
    return replace(found, latent_factor=factor, latent_scale=scale, default_pixels=pixels, prediction=prediction)


def hints_of(unet: UNet2DConditionModel, vae: AutoencoderKL, texts: Sequence[nn.Module]) -> dict[str, Settings]:
    """What the shapes of the models do not tell and is not the libraries' default.

    A setting beyond those that a file may tell is refused, as the base could not be read again.
    """
    pooled = 0 if unet.config.get("addition_embed_type") is None else _config(texts[-1]).projection_dim
    found = {
        "unet": _untold(UNet2DConditionModel, dict(unet.config), unet_config(unet.state_dict(), pooled)),
        "vae": _untold(AutoencoderKL, dict(vae.config), vae_config(vae.state_dict())),
        **{part: _untold_of_text(text) for part, text in zip(TEXTS, texts, strict=False)},
    }
    for part, settings in found.items():
        if beyond := settings.keys() - set(TOLD[part]):
            raise UnsupportedBase(
                f"its {part} has the setting {min(beyond)}, which no checkpoint can tell: keep the base as a folder"
            )
    return found


def hints_in(part: str, given: Settings, told: Settings, name: str) -> Settings:
    """What a config.json says that shapes do not tell: only what may be said, and nothing that nobody here knows."""
    defaults = _defaults(KINDS_OF_MODELS[part])
    untold = {key: each for key, each in given.items() if key in defaults and key not in told}
    odd = {key: each for key, each in untold.items() if _plain(each) != _plain(defaults[key])}
    # a text tower's settings are transformers' too, most of them for training; none changes what CLIP computes
    if part != "text" and (beyond := odd.keys() - set(TOLD[part])):
        raise UnsupportedBase(
            f"{name} has the setting {min(beyond)} in its {part}, which is not known here: open another"
        )
    return checked_hints(name, {part: odd}, [part])[part]


def checked_hints(name: str, found: object, parts: Iterable[str]) -> dict[str, Settings]:
    """What a file's own header says of what shapes do not tell: only what may be said, and no nonsense in numbers."""
    said = cast("dict[str, Settings]", found) if isinstance(found, dict) else {}
    if not all(isinstance(said.get(each), dict) for each in parts):
        raise BadFile(f"{name} has damaged settings in its header: save the base again")
    hints = {part: {key: each for key, each in said[part].items() if key in TOLD[part]} for part in parts}
    for part, settings in hints.items():
        for key, each in settings.items():
            if isinstance(each, float) and not 0 < each < LARGEST:
                raise BadFile(f"{name} says that {key} of its {part} is {each}: save the base again")
    return hints


def _config(text: nn.Module) -> Any:
    return text.config


def _untold_of_text(text: nn.Module) -> Settings:
    config, defaults, told = _config(text), CLIPTextConfig(), text_config(text.state_dict())
    given = {key: getattr(config, key) for key in TOLD["text"] if key not in told}
    if given["eos_token_id"] == OLD_IDS["eos_token_id"]:
        given = {key: each for key, each in given.items() if key not in {*OLD_IDS, "pad_token_id"}}
    return {key: each for key, each in given.items() if each != getattr(defaults, key)}


def _untold(kind: type[object], given: Mapping[str, Any], told: Settings) -> Settings:
    defaults = _defaults(kind)
    untold = {key: each for key, each in given.items() if key in defaults and key not in told}
    return {key: each for key, each in untold.items() if _plain(each) != _plain(defaults[key])}


def _defaults(kind: type[object]) -> Settings:
    if kind is CLIPTextConfig:
        return CLIPTextConfig().to_dict()
    return {name: each.default for name, each in inspect.signature(kind).parameters.items()}


def _plain(value: object) -> object:
    """A setting as JSON gives it back."""
    return list(cast("list[object]", value)) if isinstance(value, list | tuple) else value


def _numbered(state: State, prefix: str) -> int:
    """How many modules there are of this name, numbered from 0."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({found[1] for key in state if (found := pattern.match(key))})
