"""img2img and inpainting: the latents of an image to start from, and the mask that limits what may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from velatura.base.base import Base
from velatura.base.image_condition import edit_condition, masked_condition
from velatura.errors import BadRecipe
from velatura.sampling.images import encode_image, image_pixels, read_image, resize_image, round_down
from velatura.sampling.masks import (
    InitImage,
    MaskBox,
    blur_mask,
    crop_box,
    fill_masked,
    latent_mask,
    paste_part,
    pixel_mask,
    read_mask,
)
from velatura.sampling.noise.seeded import SeededNoise
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sizes import Resolution
from velatura.sampling.samplers import Denoiser


@dataclass(frozen=True)
class InitLatents:
    """Latents of an init image, and what is needed to put the unmasked part of the image back.

    Attributes:
        latents: (1, 4, height, width).
        mask: (1, height, width) of the latents, 1 where they may change. None: everywhere.
        full_image: The image that the picture is pasted into. None: the picture is used as it is.
        box: The part of the full image that was cropped out. None: all of it.
        paste_mask: The mask by which the picture is pasted, of the full image's size.
        image_condition: What an inpainting or pix2pix UNet reads of the image, (1, channels, height, width). None for
            other bases.
    """

    latents: Tensor
    mask: Tensor | None = None
    full_image: Image.Image | None = None
    box: MaskBox | None = None
    paste_mask: Image.Image | None = None
    image_condition: Tensor | None = None

    @classmethod
    def encode(cls, base: Base, init_image: InitImage, recipe: Recipe, size: Resolution, seed: int) -> Self:
        """Resize, mask and encode an init image as a recipe asks for.

        Args:
            base: Its VAE encodes the image.
            init_image: The image, and perhaps a mask.
            recipe: Its `fit`, `mask_blur`, `unrounded_mask`, `mask_padding`, `masked_content` and
                `inpainting_mask_weight` are used.
            size: The size of the picture in pixels.
            seed: The seed of the noise that fills the mask where `masked_content` is "latent noise".

        Raises:
            BadRecipe: The mask is completely black, or an image has a mode that cannot be converted.
        """
        image = read_image(init_image.image)
        if init_image.mask is None:
            part = resize_image(image, size, recipe.fit)
            condition = _image_condition(base, part, None, recipe, size)
            return cls(_encode_at_size(base, part, size), image_condition=condition)
        mask = blur_mask(read_mask(init_image.mask).resize(image.size), recipe.mask_blur)
        if mask.getbbox() is None:
            raise BadRecipe("the mask is completely black, so nothing would change: paint white where it should change")
        if recipe.mask_padding is None:
            box = None
            part, part_mask = resize_image(image, size, recipe.fit), resize_image(mask, size, recipe.fit)
            full_image, paste_mask = part, part_mask
        else:
            box = crop_box(mask, recipe.mask_padding, size)
            part = resize_image(image.crop(box), size, "stretch")
            part_mask = resize_image(mask.crop(box), size, "stretch")
            full_image, paste_mask = image, mask
        if recipe.masked_content == "fill":
            part = fill_masked(part, part_mask)
        latents = _encode_at_size(base, part, size)
        latent_size = Resolution(latents.shape[-1], latents.shape[-2])
        mask_of_latents = latent_mask(part_mask, latent_size, is_rounded=not recipe.unrounded_mask).to(latents.device)
        latents = _apply_masked_content(latents, mask_of_latents, recipe.masked_content, seed)
        condition = _image_condition(base, part, part_mask, recipe, size)
        return cls(latents, mask_of_latents, full_image, box, paste_mask, condition)

    def paste_back(self, picture: Image.Image) -> Image.Image:
        """Paste a picture into the image it was made from, so that unmasked pixels stay exactly as they were.

        Returns:
            A picture of the image's size where only a part was cropped out, else of the picture's own size.
        """
        if self.full_image is None or self.paste_mask is None:
            return picture
        if self.box is not None:
            return paste_part(self.full_image, picture, self.box, self.paste_mask)
        full_image, paste_mask = self.full_image.resize(picture.size), self.paste_mask.resize(picture.size)
        return paste_part(full_image, picture, (0, 0, *picture.size), paste_mask)


@dataclass(frozen=True)
class BatchInitLatents:
    """Latents that all pictures of a batch start from, encoded from images or upscaled from a first pass.

    Attributes:
        latents: (pictures, 4, height, width).
        masks: (pictures, 1, height, width), 1 where the latents may change. None: everywhere.
        image_conditions: What an inpainting or pix2pix UNet reads of the images, (pictures, channels, height, width).
            None: what it reads without an image.
    """

    latents: Tensor
    masks: Tensor | None = None
    image_conditions: Tensor | None = None

    @classmethod
    def stack(cls, init_latents: Sequence[InitLatents]) -> Self:
        """Combine the init latents of single pictures, some of which may have a mask."""
        latents = torch.cat([picture.latents for picture in init_latents])
        conditions = [picture.image_condition for picture in init_latents if picture.image_condition is not None]
        image_conditions = torch.cat(conditions) if conditions else None
        if all(picture.mask is None for picture in init_latents):
            return cls(latents, image_conditions=image_conditions)
        change_all = latents.new_ones(1, 1, 1)
        masks = [change_all if picture.mask is None else picture.mask for picture in init_latents]
        return cls(latents, torch.stack(masks), image_conditions)

    def masked_denoiser(self, denoise: Denoiser) -> Denoiser:
        """Return a denoiser whose result keeps the init latents where they may not change."""

        def denoise_masked(noisy: Tensor, sigma: Tensor) -> Tensor:
            return self.restore_unmasked(denoise(noisy, sigma))

        return denoise_masked

    def restore_unmasked(self, latents: Tensor) -> Tensor:
        """Replace latents (pictures, 4, height, width) by the init latents where they may not change."""
        if self.masks is None:
            return latents
        return latents * self.masks + self.latents * (1 - self.masks)


def _encode_at_size(base: Base, image: Image.Image, size: Resolution) -> Tensor:
    """Encode an image, and resize its latents to those of a picture's size where the image has another size."""
    encoder_size = round_down(image.size, base.family.vae_scale_factor)
    return _fit_latents(base, encode_image(base, resize_image(image, encoder_size, "stretch")), size)


def _fit_latents(base: Base, latents: Tensor, size: Resolution) -> Tensor:
    """Resize latents to those of a picture's size, if they have another size (the resize mode "latent")."""
    latent_factor = base.family.vae_scale_factor
    latent_size = (size.height // latent_factor, size.width // latent_factor)
    if latents.shape[-2:] == latent_size:
        return latents
    return functional.interpolate(latents, size=latent_size, mode="bilinear")


def _image_condition(
    base: Base, image: Image.Image, mask: Image.Image | None, recipe: Recipe, size: Resolution
) -> Tensor | None:
    """Return what an inpainting or pix2pix UNet reads of an image, None for another base.

    An inpainting model reads the mask at the picture's size, black or white unless the recipe keeps its shades, and of
    the image what the mask leaves; without a mask all of the image is masked, as in A1111.
    """
    if base.image_condition is None:
        return None
    encoder_size = round_down(image.size, base.family.vae_scale_factor)
    pixels = image_pixels(resize_image(image, encoder_size, "stretch"))
    if base.image_condition == "pix2pix":
        return _fit_latents(base, edit_condition(base, pixels), size)
    weight = 1.0 if recipe.inpainting_mask_weight is None else recipe.inpainting_mask_weight
    mask_pixels = None if mask is None else pixel_mask(mask, encoder_size, is_rounded=not recipe.unrounded_mask)
    condition = masked_condition(base, pixels, mask_pixels, weight)
    resized = _fit_latents(base, condition, size)
    if recipe.unrounded_mask:
        return resized
    return torch.cat([resized[:, :1].round(), resized[:, 1:]], dim=1)


def _apply_masked_content(latents: Tensor, mask: Tensor, content: str, seed: int) -> Tensor:
    """Replace the masked latents by noise or by zeros where a recipe asks for it."""
    if content == "latent nothing":
        return latents * (1 - mask)
    if content == "latent noise":
        noise = SeededNoise([seed], tuple(latents.shape[1:]), latents.device).draw()
        return latents * (1 - mask) + noise * mask
    return latents
