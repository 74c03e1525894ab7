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
    Box,
    Source,
    crop_box,
    filled,
    fitted,
    latent_mask,
    pasted,
    read_image,
    read_mask,
    softened,
)
from velatura.sampling.noise import Noise
from velatura.sampling.recipe import Recipe
from velatura.sampling.samplers import Denoise
from velatura.sampling.sizes import Size

DENOISING = 0.75  # of an image, where a recipe leaves it open; the webui's default


@dataclass(frozen=True)
class Beginning:
    """An image as the base reads it, and where of it is painted anew.

    latents: (1, 4, height, width); mask: (1, height, width) of them, 1 where they change, None for everywhere. whole,
    box and edge: the picture that only a part is taken from, which part, and the mask to paste it back by.
    """

    latents: Tensor
    mask: Tensor | None = None
    whole: Image.Image | None = None
    box: Box | None = None
    edge: Image.Image | None = None

    @classmethod
    def of(cls, base: Base, source: Source, recipe: Recipe, size: Size, seed: int) -> Self:
        """Read an image and its mask as a recipe wants them, for a picture of a size in pixels.

        Raises BadRecipe for a mask that is black all over.
        """
        image = read_image(source.image)
        if source.mask is None:
            return cls(_encoded(base, fitted(image, size, recipe.fit), size))
        edge = softened(read_mask(source.mask).resize(image.size), recipe.mask_blur)
        box = None if recipe.mask_padding is None else crop_box(edge, recipe.mask_padding, size)
        if edge.getbbox() is None:
            raise BadRecipe("the mask is black all over, so nothing would change: paint white where it should")
        part, cut = (image, edge) if box is None else (image.crop(box), edge.crop(box))
        part, cut = (fitted(each, size, "stretch" if box else recipe.fit) for each in (part, cut))
        if recipe.masked_content == "fill":
            part = filled(part, cut)
        latents = _encoded(base, part, size)
        mask = latent_mask(cut, Size(latents.shape[-1], latents.shape[-2])).to(latents.device)
        latents = _emptied(latents, mask, recipe.masked_content, seed)
        whole, edge = (image, edge) if box else (fitted(each, size, recipe.fit) for each in (image, edge))
        return cls(latents, mask, whole, box, edge)

    def painted_over(self, picture: Image.Image) -> Image.Image:
        """The picture with what was not masked put back, at the size of the image where only a part was painted."""
        if self.whole is None or self.edge is None:
            return picture
        box = self.box or (0, 0, *picture.size)
        whole, edge = (each if self.box else each.resize(picture.size) for each in (self.whole, self.edge))
        return pasted(whole, picture, box, edge)


def kept(denoise: Denoise, beginnings: list[Beginning]) -> Denoise:
    """A denoiser whose guesses leave alone what is not masked."""
    if all(each.mask is None for each in beginnings):
        return denoise
    latents = torch.cat([each.latents for each in beginnings])
    masks = torch.stack([each.latents.new_ones(1, 1, 1) if each.mask is None else each.mask for each in beginnings])

    def denoise_masked(noisy: Tensor, sigma: Tensor) -> Tensor:
        return denoise(noisy, sigma) * masks + latents * (1 - masks)

    return denoise_masked


def hash_of(image: Image.Image) -> str:
    """What a recipe records of an image: ten hex digits of the sha256 of its size and pixels."""
    pixels = read_image(image)
    return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()[:10]


def mask_hash_of(source: Source) -> str | None:
    """The same of a mask, if there is one."""
    return source.mask and hash_of(read_mask(source.mask))


def _encoded(base: Base, image: Image.Image, size: Size) -> Tensor:
    """The latents of an image, stretched to a picture's size if it has another."""
    factor = base.family.latent_factor
    whole = Size(*(max(factor, side - side % factor) for side in image.size))
    values = torch.tensor(np.asarray(fitted(image, whole, "stretch")), dtype=torch.float32)
    latents = base.encode(values.permute(2, 0, 1)[None] / 127.5 - 1)
    wanted = (size.height // factor, size.width // factor)
    return latents if latents.shape[-2:] == wanted else functional.interpolate(latents, size=wanted, mode="bilinear")


def _emptied(latents: Tensor, mask: Tensor, content: str, seed: int) -> Tensor:
    """Latents with what is masked replaced by noise, or by nothing, where a recipe wants that."""
    if content == "latent nothing":
        return latents * (1 - mask)
    if content == "latent noise":
        noise = Noise([seed], tuple(latents.shape[1:]), latents.device).draw()
        return latents * (1 - mask) + noise * mask
    return latents
