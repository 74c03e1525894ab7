"""What a picture begins from, where it is not noise alone: an image, of which perhaps only a part is painted anew."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from velatura.base.base import Base
from velatura.errors import BadRecipe
from velatura.sampling.masks import (
    InitImage,
    MaskBox,
    blur_mask,
    crop_box,
    fill_masked,
    latent_mask,
    paste_part,
    read_image,
    read_mask,
    resize_image,
)
from velatura.sampling.noise import SeededNoise
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sizes import Resolution
from velatura.sampling.samplers import Denoiser

DEFAULT_IMG2IMG_DENOISING = 0.75  # of an image, where a recipe leaves it open; the webui's default


@dataclass(frozen=True)
class InitLatents:
    """An image as the base reads it, and where of it is painted anew.

    latents: (1, 4, height, width); mask: (1, height, width) of them, 1 where they change, None for everywhere. whole,
    box and edge: the picture that only a part is taken from, which part, and the mask to paste it back by.
    """

    latents: Tensor
    mask: Tensor | None = None
    full_image: Image.Image | None = None
    box: MaskBox | None = None
    paste_mask: Image.Image | None = None

    @classmethod
    def of(cls, base: Base, init_image: InitImage, recipe: Recipe, size: Resolution, seed: int) -> Self:
        """Read an image and its mask as a recipe wants them, for a picture of a size in pixels.

        Raises BadRecipe for a mask that is black all over.
        """
        image = read_image(init_image.image)
        if init_image.mask is None:
            return cls(_encode_image(base, resize_image(image, size, recipe.fit), size))
        blurred_mask = blur_mask(read_mask(init_image.mask).resize(image.size), recipe.mask_blur)
        box = None if recipe.mask_padding is None else crop_box(blurred_mask, recipe.mask_padding, size)
        if blurred_mask.getbbox() is None:
            raise BadRecipe("the mask is black all over, so nothing would change: paint white where it should")
        part, part_mask = (image, blurred_mask) if box is None else (image.crop(box), blurred_mask.crop(box))
        part, part_mask = (
            resize_image(picture, size, "stretch" if box else recipe.fit) for picture in (part, part_mask)
        )
        if recipe.masked_content == "fill":
            part = fill_masked(part, part_mask)
        latents = _encode_image(base, part, size)
        mask = latent_mask(part_mask, Resolution(latents.shape[-1], latents.shape[-2])).to(latents.device)
        latents = _apply_masked_content(latents, mask, recipe.masked_content, seed)
        full_image, blurred_mask = (
            (image, blurred_mask)
            if box
            else (resize_image(picture, size, recipe.fit) for picture in (image, blurred_mask))
        )
        return cls(latents, mask, full_image, box, blurred_mask)

    def paste_back(self, picture: Image.Image) -> Image.Image:
        """The picture with what was not masked put back, at the size of the image where only a part was painted."""
        if self.full_image is None or self.paste_mask is None:
            return picture
        box = self.box or (0, 0, *picture.size)
        full_image, paste_mask = (
            image if self.box else image.resize(picture.size) for image in (self.full_image, self.paste_mask)
        )
        return paste_part(full_image, picture, box, paste_mask)


def masked_denoiser(denoise: Denoiser, init_latents: list[InitLatents]) -> Denoiser:
    """A denoiser whose guesses leave alone what is not masked."""
    if all(init.mask is None for init in init_latents):
        return denoise
    latents = torch.cat([init.latents for init in init_latents])
    masks = torch.stack([init.latents.new_ones(1, 1, 1) if init.mask is None else init.mask for init in init_latents])

    def denoise_masked(noisy: Tensor, sigma: Tensor) -> Tensor:
        return denoise(noisy, sigma) * masks + latents * (1 - masks)

    return denoise_masked


def compute_image_hash(image: Image.Image) -> str:
    """What a recipe records of an image: ten hex digits of the sha256 of its size and pixels."""
    pixels = read_image(image)
    return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()[:10]


def compute_mask_hash(init_image: InitImage) -> str | None:
    """The same of a mask, if there is one."""
    return init_image.mask and compute_image_hash(read_mask(init_image.mask))


def _encode_image(base: Base, image: Image.Image, size: Resolution) -> Tensor:
    """The latents of an image, stretched to a picture's size if it has another."""
    latent_factor = base.family.vae_scale_factor
    encoder_size = Resolution(*(max(latent_factor, side - side % latent_factor) for side in image.size))
    values = torch.tensor(np.asarray(resize_image(image, encoder_size, "stretch")), dtype=torch.float32)
    latents = base.encode(values.permute(2, 0, 1)[None] / 127.5 - 1)
    latent_size = (size.height // latent_factor, size.width // latent_factor)
    return (
        latents
        if latents.shape[-2:] == latent_size
        else functional.interpolate(latents, size=latent_size, mode="bilinear")
    )


def _apply_masked_content(latents: Tensor, mask: Tensor, content: str, seed: int) -> Tensor:
    """Latents with what is masked replaced by noise, or by nothing, where a recipe wants that."""
    if content == "latent nothing":
        return latents * (1 - mask)
    if content == "latent noise":
        noise = SeededNoise([seed], tuple(latents.shape[1:]), latents.device).draw()
        return latents * (1 - mask) + noise * mask
    return latents
