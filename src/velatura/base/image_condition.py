"""Image conditions: what the UNets of inpainting and pix2pix models read beside the noisy latents, as further channels.

An inpainting UNet (9 channels) reads a mask and the latents of the masked image, an instruct-pix2pix UNet (8 channels)
the latents of the image that it edits.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from velatura.base.families import Family

ImageConditionKind = Literal["inpainting", "pix2pix"]

LATENT_CHANNELS = 4
# Input channels of a UNet: the noisy latents' own, and behind them those of the image condition
CONDITION_BY_CHANNELS: dict[int, ImageConditionKind] = {8: "pix2pix", 9: "inpainting"}


class ImageEncoder(Protocol):
    """Part of a Base that is needed here: its VAE and what its UNet reads."""

    family: Family

    @property
    def device(self) -> torch.device:
        """Return the device on which the base computes."""
        ...

    @property
    def image_condition(self) -> ImageConditionKind | None:
        """Return what the UNet reads beside the latents."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (batch, 3, height, width) in [-1, 1] into latents."""
        ...


@torch.no_grad()
def blank_condition(base: ImageEncoder, height: int, width: int) -> Tensor:
    """Return the image condition without an image.

    For inpainting that is A1111's in txt2img: a mask of ones, and the latents of a completely masked, grey image. For
    pix2pix it is zeros, which its training used where it dropped the image (Brooks et al. 2023, section 3.2.1).

    Args:
        base: A base that reads an image condition.
        height, width: Size of the latents.

    Returns:
        (1, 5, height, width) for inpainting, (1, 4, height, width) for pix2pix, in float32.
    """
    if base.image_condition == "pix2pix":
        return torch.zeros(1, LATENT_CHANNELS, height, width, device=base.device)
    factor = base.family.vae_scale_factor
    with torch.autocast(base.device.type, enabled=False):  # a training's autocast must not round it
        return masked_condition(base, torch.zeros(1, 3, height * factor, width * factor))


@torch.no_grad()
def masked_condition(base: ImageEncoder, pixels: Tensor, mask: Tensor | None = None, strength: float = 1.0) -> Tensor:
    """Return the image condition of an inpainting model: the mask, and the latents of the masked image.

    Args:
        base: Its VAE encodes the image.
        pixels: (1, 3, height, width) in [-1, 1].
        mask: (1, 1, height, width), 1 where the image changes, 0 where it stays, and shades between them if the model
            shall read some. None: it changes everywhere.
        strength: How much of the masked part is hidden: 1 makes it grey, 0 leaves the image as it is. A1111's
            "inpainting conditioning mask strength".

    Returns:
        (1, 5, height / 8, width / 8) in float32; / 4 for the tiny base.
    """
    mask = pixels.new_ones(1, 1, *pixels.shape[-2:]) if mask is None else mask.to(pixels)
    latents = base.encode(torch.lerp(pixels, pixels * (1 - mask), strength))
    latent_mask = functional.interpolate(mask, size=latents.shape[-2:])  # the nearest pixel, as A1111 and diffusers
    return torch.cat([latent_mask.to(latents), latents], dim=1)


@torch.no_grad()
def edit_condition(base: ImageEncoder, pixels: Tensor) -> Tensor:
    """Return the image condition of a pix2pix model: the VAE's means, without the scale that latents usually have.

    Args:
        base: Its VAE encodes the image.
        pixels: (1, 3, height, width) in [-1, 1].

    Returns:
        (1, 4, height / 8, width / 8) in float32; / 4 for the tiny base.
    """
    return base.encode(pixels) / base.family.scaling_factor
