"""Derive the configurations of models from the shapes of their tensors; `config_hints` has the other settings.

LDM's own configuration, a .yaml beside a checkpoint, is searched for what contradicts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from velatura.base.model_settings import ModelConfig
from velatura.errors import BadFile, warn
from velatura.files import open_for_reading
from velatura.formats.check_texts import shorten_keys, shorten_text
from velatura.formats.checkpoints.ldm_keys import UNetLayout, count_indices
from velatura.formats.checkpoints.ldm_text import PROJECTION_KEY, TEXT_MODEL_PREFIX
from velatura.tensors import StateDict

MAX_YAML_BYTES = 2**16  # A1111's have about two thousand
YAML_COMMENT = re.compile(r"(^|[ \t])#.*$", re.MULTILINE)
YAML_ENTRY = re.compile(
    r"""(?P<start>^|[{,])(?P<indent>[ \t]*)(?:-[ \t]+)*["']?(?P<key>[A-Za-z_][\w.-]*)["']?[ \t]*:(?=[ \t\r\n]|$)"""
    r"""[ \t]*["']?(?P<value>[^\r\n,{}"']*)""",
    re.MULTILINE,
)
TRAINING_SECTIONS = {"data", "lightning"}
# Entries of the published configurations (CompVis, Stability, A1111) that follow from the weights or matter in training
YAML_ENTRIES = (
    "model base_learning_rate target params num_timesteps_cond log_every_t first_stage_key cond_stage_key image_size "
    "channels cond_stage_trainable conditioning_key monitor use_ema scheduler_config warm_up_steps cycle_lengths "
    "f_start f_max f_min unet_config network_config in_channels out_channels model_channels attention_resolutions "
    "num_res_blocks channel_mult use_spatial_transformer transformer_depth context_dim use_checkpoint legacy use_fp16 "
    "use_linear_in_transformer adm_in_channels num_classes spatial_transformer_attn_type first_stage_config embed_dim "
    "ddconfig double_z z_channels resolution out_ch ch ch_mult attn_resolutions dropout attn_type lossconfig "
    "cond_stage_config freeze layer layer_idx arch version max_length disable_first_stage_autocast denoiser_config "
    "weighting_config scaling_config discretization_config conditioner_config emb_models is_trainable input_key "
    "outdim always_return_pooled ucg_rate legacy_ucg_value finetune_keys unet_trainable ckpt_path ignore_keys "
    "parameterization"
)
# Numbers that A1111 takes from the configuration, and that velatura has as constants of Stable Diffusion
YAML_NUMBERS: Mapping[str, tuple[float, ...]] = {
    "linear_start": (0.00085,),
    "linear_end": (0.012,),
    "timesteps": (1000,),
    "num_idx": (1000,),
    "scale_factor": (0.18215, 0.13025),  # the second is SDXL's
    "num_heads": (8, -1),
    "num_head_channels": (64, -1),
}
YAML_WORDS = {"beta_schedule": ("linear",)}
DISCRETIZER = re.compile(r"[\w.]*\bdiscretizer\.(?!LegacyDDPMDiscretization\b)\w+")  # sgm's class of noise levels

CLIP_POSITIONS = 77  # tokens that a CLIP text encoder reads at once
# Layers of the text encoders of SD1 and SDXL, of SD2 (of whose 24 layers 23 are used), and of SDXL's second, by width
LAYER_COUNTS = {768: (12,), 1024: (23, 24), 1280: (32,)}
POSITION_IDS = "position_ids"
MAX_SHOWN_KEY_LENGTH = 80
TIME_ID_COUNT = 6  # SDXL: original height and width, top and left of the crop, target height and width


class YamlEntry(NamedTuple):
    """An entry of a .yaml file: its key, its value as a text, and the section at the file's top that it is in."""

    key: str
    value: str
    section: str


def read_yaml(path: Path) -> list[YamlEntry]:
    """Read the entries of the .yaml beside a checkpoint, in their order; none without that file, or of a very long one.

    The file is searched as text: nothing in it is loaded or run. Where the entries are inside each other is not read.

    Args:
        path: The checkpoint.
    """
    yaml_path = path.with_suffix(".yaml")
    if not yaml_path.is_file():
        return []
    with open_for_reading(yaml_path) as file:
        data = file.read(MAX_YAML_BYTES + 1)
    text = "" if len(data) > MAX_YAML_BYTES else data.decode("utf-8-sig", errors="replace")
    entries: list[YamlEntry] = []
    section = ""
    for match in YAML_ENTRY.finditer(YAML_COMMENT.sub("", text)):
        if not match["start"] and not match["indent"]:
            section = match["key"]
        entries.append(YamlEntry(match["key"], match["value"].strip(), section))
    return entries


def warn_of_yaml(path: Path, scaling_factor: float) -> None:
    """Warn of what the .yaml beside a checkpoint says and velatura does not know, or does otherwise.

    Args:
        path: The checkpoint.
        scaling_factor: The factor of its latents.
    """
    entries = [entry for entry in read_yaml(path) if entry.section not in TRAINING_SECTIONS]
    yaml_path = path.with_suffix(".yaml")
    name = yaml_path.name
    if yaml_path.is_file() and yaml_path.stat().st_size > MAX_YAML_BYTES:
        warn(f"{name} has more than {MAX_YAML_BYTES >> 10} KiB, so it is not read: pictures may come out wrong")
    known = {*YAML_ENTRIES.split(), *YAML_NUMBERS, *YAML_WORDS}
    unknown = dict.fromkeys(entry.key for entry in entries if entry.key not in known)
    if unknown:
        warn(
            f"{name} has entries that velatura does not know ({shorten_keys(unknown)}): they are not used, so pictures "
            "may differ from those of programs that follow it"
        )
    others = dict.fromkeys(_find_other_settings(entries, {**YAML_NUMBERS, "scale_factor": (scaling_factor,)}))
    if others:
        warn(
            f"{name} says {shorten_keys(others)}, which velatura does not follow: check the pictures, they may come "
            "out wrong"
        )


def _find_other_settings(entries: list[YamlEntry], numbers: Mapping[str, tuple[float, ...]]) -> Iterator[str]:
    """Yield the entries whose values are others than those that velatura has."""
    for key, text, _ in entries:
        if key in numbers:
            try:
                is_other = float(text) not in numbers[key]
            except ValueError:
                is_other = True
        elif key in YAML_WORDS:
            is_other = text not in YAML_WORDS[key]
        else:
            is_other = key == "target" and DISCRETIZER.fullmatch(text) is not None
        if is_other:
            yield f"{key}: {shorten_text(text.rpartition('.')[2] if key == 'target' else text)}"


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


def check_text_encoders(name: str, text_configs: Sequence[ModelConfig], context_width: int) -> None:
    """Refuse text encoders that do not fit their UNet, or lack a layer or a position.

    Args:
        name: Name of the base, for messages.
        text_configs: What `text_config` returns for each text encoder.
        context_width: Features of the context that the UNet reads.

    Raises:
        BadFile: They do not fit.
    """
    widths = [int(config["hidden_size"]) for config in text_configs]
    if sum(widths) != context_width:
        encoders = f"a text encoder of {widths[0]}" if len(widths) == 1 else f"text encoders of {_join_widths(widths)}"
        raise BadFile(
            f"{name} has {encoders} features, and a UNet that reads {context_width:,}: it is damaged, or put together "
            "from two models"
        )
    for config, width in zip(text_configs, widths, strict=True):
        layer_count, position_count = config["num_hidden_layers"], config["max_position_embeddings"]
        if layer_count not in LAYER_COUNTS.get(width, (layer_count,)):
            raise BadFile(
                f"{name} has {layer_count} layers in its text encoder of {width} features, and should have "
                f"{LAYER_COUNTS[width][-1]}: it is cut short or damaged, so download it again"
            )
        if position_count != CLIP_POSITIONS:
            raise BadFile(
                f"{name} has {position_count} positions in its text encoder of {width} features, and CLIP has "
                f"{CLIP_POSITIONS}: it is damaged, or another model's"
            )


def check_position_ids(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse position ids of another number than CLIP's, and warn of wrong ones: they only count from 0.

    Raises:
        BadFile: There are more or fewer.
    """
    for key in [key for key in tensors if key.endswith(POSITION_IDS)]:
        ids = tensors[key]
        if ids.numel() != CLIP_POSITIONS:
            raise BadFile(
                f"{name} has {ids.numel()} numbers in {key[:MAX_SHOWN_KEY_LENGTH]}, and CLIP has {CLIP_POSITIONS} "
                "positions: it is damaged, or another model's"
            )
        if not torch.equal(ids.flatten().cpu().double(), torch.arange(CLIP_POSITIONS).double()):
            warn(
                f"{name} has wrong numbers in {key[:MAX_SHOWN_KEY_LENGTH]}, as merges in half precision leave them: "
                "positions are numbered from 0, but other programs may shift prompts"
            )


def _join_widths(widths: Sequence[int]) -> str:
    return " and ".join(f"{width:,}" for width in widths)
