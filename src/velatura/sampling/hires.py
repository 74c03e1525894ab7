"""Hires fix: from the latents of the first pass to those that the second, larger pass starts from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from velatura.base.base import Base
from velatura.base.image_condition import masked_condition
from velatura.errors import UnknownName
from velatura.sampling.images import decode_image, encode_image, round_down
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sizes import HiresTarget, Resolution


class InterpolationMode(NamedTuple):
    """A way in which torch.nn.functional.interpolate resizes latents."""

    mode: str
    antialias: bool = False


# Under A1111's names
LATENT_UPSCALERS = {
    "Latent": InterpolationMode("bilinear"),
    "Latent (antialiased)": InterpolationMode("bilinear", antialias=True),
    "Latent (bicubic)": InterpolationMode("bicubic"),
    "Latent (bicubic antialiased)": InterpolationMode("bicubic", antialias=True),
    "Latent (nearest)": InterpolationMode("nearest"),
    "Latent (nearest-exact)": InterpolationMode("nearest-exact"),
}
PIXEL_UPSCALERS = {
    "None": Image.Resampling.LANCZOS,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}


def find_upscaler(name: str) -> str:
    """Return the name of an upscaler as the tables spell it.

    Args:
        name: The name in any case.

    Raises:
        UnknownName: No such upscaler exists; the message suggests similar ones.
    """
    name_by_lower = {upscaler.lower(): upscaler for upscaler in (*LATENT_UPSCALERS, *PIXEL_UPSCALERS)}
    if name.lower() not in name_by_lower:
        raise UnknownName.with_suggestions("upscaler", name, name_by_lower.values())
    return name_by_lower[name.lower()]


def upscale_latents(base: Base, latents: Tensor, target: HiresTarget, upscaler: str) -> Tensor:
    """Upscale the latents of the first pass, and crop them centrally to the size of the second pass.

    Args:
        base: Decodes and encodes for the upscalers that work on pixels.
        latents: (pictures, 4, height, width).
        target: The size to upscale to in pixels, and what is then cut off in latents.
        upscaler: A name from LATENT_UPSCALERS, which resize the latents themselves, or from PIXEL_UPSCALERS, which
            decode, resize and encode again.
    """
    latent_factor = base.family.vae_scale_factor
    size = Resolution(target.upscale_to.width // latent_factor, target.upscale_to.height // latent_factor)
    if upscaler in LATENT_UPSCALERS:
        mode, antialias = LATENT_UPSCALERS[upscaler]
        upscaled = functional.interpolate(latents, size=(size.height, size.width), mode=mode, antialias=antialias)
    else:
        upscaled = _upscale_in_pixels(base, latents, target, upscaler)
    left, right = target.truncate.width // 2, (target.truncate.width + 1) // 2
    top, bottom = target.truncate.height // 2, (target.truncate.height + 1) // 2
    return upscaled[:, :, top : size.height - bottom, left : size.width - right]


def hires_conditions(base: Base, latents: Tensor, recipe: Recipe) -> Tensor | None:
    """Return what an inpainting UNet reads in the second pass beside the latents, None for what it reads without image.

    As in A1111, all of the first pass is masked, so that an `inpainting_mask_weight` below 1 leaves a part of it.

    Args:
        base: The base.
        latents: Upscaled latents of the first pass, (pictures, 4, height, width).
        recipe: Its `inpainting_mask_weight` is used.
    """
    weight = recipe.inpainting_mask_weight
    if base.image_condition != "inpainting" or weight is None or weight == 1:
        return None
    conditions = [masked_condition(base, base.decode(picture[None]) * 2 - 1, strength=weight) for picture in latents]
    return torch.cat(conditions)


def _upscale_in_pixels(base: Base, latents: Tensor, target: HiresTarget, upscaler: str) -> Tensor:
    pixel_size = round_down(target.upscale_to, base.family.vae_scale_factor)
    encoded: list[Tensor] = []
    for picture_latents in latents:
        image = decode_image(base, picture_latents).resize(pixel_size, PIXEL_UPSCALERS[upscaler])
        encoded.append(encode_image(base, image))
    return torch.cat(encoded).to(latents.device)
