"""The smallest base that needs no settings of its own: those of SD1 fit it, so its files may be without metadata."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

import velatura
from velatura.base.base import Base
from velatura.base.families import Family
from velatura.base.noise_schedule import NoiseSchedule
from velatura.base.text_encoder import ClipTextEncoder, TextEncoder
from velatura.formats.checkpoints import write_single_file

FAMILY = Family("unknown", 24, (32,), 2, 0.18215, 128, "epsilon")


@cache
def small_base() -> Base:
    """Return a base with 8 heads in its UNet, 12 in its text encoder, and 32 groups of norms, as SD1 has them."""
    torch.manual_seed(0)
    words = {"vocab_size": 857, "bos_token_id": 855, "eos_token_id": 856, "pad_token_id": 856, "projection_dim": 768}
    text = CLIPTextConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=12, intermediate_size=8, **words)
    unet = UNet2DConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=24,
        sample_size=64,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        sample_size=512,
    )
    encoder = ClipTextEncoder(
        velatura.tiny().text.tokenizer,
        CLIPTextModel(text),
        default_clip_skip=1,
        has_final_norm=True,
        takes_clip_skip=True,
    )
    return Base("small", FAMILY, unet=unet, vae=vae, text=TextEncoder([encoder]), schedule=NoiseSchedule()).to()


@cache
def small_state() -> Mapping[str, Tensor]:
    """Return the tensors of the small base under LDM's names."""
    contents = write_single_file.checkpoint_contents(small_base())
    return {key: contents.tensors[key].clone(memory_format=torch.contiguous_format) for key in contents.tensors}


def write_tokenizer(folder: Path) -> None:
    """Write the vocabulary of the small base where that of a checkpoint without metadata is looked for."""
    small_base().text.encoders[0].tokenizer.save_pretrained(folder / "tokenizer")


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as a checkpoint, with the vocabulary beside it.

    Args:
        path: A .safetensors or a .ckpt file.
        tensors: The tensors.
        metadata: Metadata of a .safetensors file.
    """
    if not (path.parent / "tokenizer").is_dir():
        write_tokenizer(path.parent)
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    else:
        torch.save({"state_dict": dict(tensors), "global_step": 3}, path)
