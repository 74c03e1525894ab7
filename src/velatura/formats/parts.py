"""The parts of a base, built no larger than what is in the file and filled from it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from velatura.formats.ldm_config import Settings
from velatura.formats.sources import Destination, Sources, fill
from velatura.tensors import Contents


def unet_of(settings: Settings, sources: Sources, contents: Contents, to: Destination) -> UNet2DConditionModel:
    """A UNet of these settings, filled."""
    untyped: Any = UNet2DConditionModel
    with torch.device("meta"):
        empty: UNet2DConditionModel = untyped.from_config(settings)
    return fill(empty, sources, contents, to)


def vae_of(settings: Settings, sources: Sources, contents: Contents, to: Destination) -> AutoencoderKL:
    """An autoencoder of these settings, filled."""
    untyped: Any = AutoencoderKL
    with torch.device("meta"):
        empty: AutoencoderKL = untyped.from_config(settings)
    return fill(empty, sources, contents, to)


def text_of(
    settings: Settings, sources: Sources, contents: Contents, to: Destination, *, projected: bool
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A text tower of these settings, filled; projected: with what gives a prompt as one vector."""
    config = CLIPTextConfig(**settings)
    with torch.device("meta"):
        empty = CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)
    return fill(empty, sources, contents, to)
