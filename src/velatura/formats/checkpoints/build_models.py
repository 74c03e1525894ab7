"""The parts of a base, built no larger than what is in the file and filled from it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from velatura.formats.checkpoints.ldm_config import ModelConfig
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSources, load_model
from velatura.tensors import Contents


def build_unet(
    config: ModelConfig, sources: TensorSources, contents: Contents, destination: Destination
) -> UNet2DConditionModel:
    """A UNet of these settings, filled."""
    model_class: Any = UNet2DConditionModel
    with torch.device("meta"):
        model: UNet2DConditionModel = model_class.from_config(config)
    return load_model(model, sources, contents, destination)


def build_vae(
    config: ModelConfig, sources: TensorSources, contents: Contents, destination: Destination
) -> AutoencoderKL:
    """An autoencoder of these settings, filled."""
    model_class: Any = AutoencoderKL
    with torch.device("meta"):
        model: AutoencoderKL = model_class.from_config(config)
    return load_model(model, sources, contents, destination)


def build_text_encoder(
    config: ModelConfig, sources: TensorSources, contents: Contents, destination: Destination, *, has_projection: bool
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A text tower of these settings, filled; projected: with what gives a prompt as one vector."""
    clip_config = CLIPTextConfig(**config)
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(clip_config) if has_projection else CLIPTextModel(clip_config)
    return load_model(model, sources, contents, destination)
