"""Build the models of a base from a configuration and load their tensors.

They are built on the meta device, so that memory is taken only for the tensors that the file holds.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from velatura.base.image_condition import LATENT_CHANNELS
from velatura.formats.checkpoints.ldm_config import ModelConfig, vae_config
from velatura.formats.checkpoints.tensor_sources import Destination, TensorSources, apply_sources, load_model
from velatura.imports import import_model_libraries
from velatura.tensors import Contents, meta_tensors

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

VAE_GROUPS = 32  # of the norms of all published autoencoders


def build_unet(
    config: ModelConfig, sources: TensorSources, contents: Contents, destination: Destination
) -> UNet2DConditionModel:
    """Build a UNet and load its tensors (see `load_model`)."""
    import_model_libraries()
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    model_class: Any = UNet2DConditionModel
    with torch.device("meta"):
        model: UNet2DConditionModel = model_class.from_config(config)
    return load_model(model, sources, contents, destination)


def build_vae(
    config: ModelConfig, sources: TensorSources, contents: Contents, destination: Destination
) -> AutoencoderKL:
    """Build an autoencoder and load its tensors (see `load_model`)."""
    import_model_libraries()
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    model_class: Any = AutoencoderKL
    with torch.device("meta"):
        model: AutoencoderKL = model_class.from_config(config)
    return load_model(model, sources, contents, destination)


def load_lone_vae(contents: Contents, sources: TensorSources) -> None:
    """Load an autoencoder that is in a file without a configuration, to find what is wrong with its tensors.

    Args:
        contents: The file.
        sources: Tensors of the file by the model's names.

    Raises:
        BadFile: A tensor is missing, left over, of another shape, or not finite floating-point numbers.
    """
    config = vae_config(apply_sources(sources, meta_tensors(contents.tensors)))
    if config["latent_channels"] != LATENT_CHANNELS:  # another model's, as its card says; a UNet beside it refuses it
        return
    groups = math.gcd(VAE_GROUPS, *config["block_out_channels"])  # no tensor tells them
    build_vae({**config, "norm_num_groups": groups}, sources, contents, Destination())


def build_text_encoder(
    config: ModelConfig, sources: TensorSources, contents: Contents, destination: Destination, *, has_projection: bool
) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Build a CLIP text encoder and load its tensors (see `load_model`).

    Args:
        config: Fields of CLIPTextConfig.
        sources: Tensors of the file by the model's names.
        contents: The file.
        destination: Precision and device of the tensors.
        has_projection: Build the text encoder with the projection that gives pooled embeddings, as SDXL's second has.
    """
    import_model_libraries()
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    clip_config = CLIPTextConfig(**config)
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(clip_config) if has_projection else CLIPTextModel(clip_config)
    return load_model(model, sources, contents, destination)


def projection_width(config: ModelConfig) -> int:
    """Return the width of a text encoder's pooled embeddings, in features; a config that does not say it has 512.

    Args:
        config: Fields of CLIPTextConfig.
    """
    from transformers import CLIPTextConfig

    clip_config: Any = CLIPTextConfig(**config)
    return clip_config.projection_dim
