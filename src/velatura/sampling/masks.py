"""Masks of inpainting: read, blurred, cropped, and applied to images and latents."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from velatura.errors import BadRecipe
from velatura.sampling.images import RESAMPLING, compute_image_hash, convert_image
from velatura.sampling.recipe.sizes import Resolution

MaskBox = tuple[int, int, int, int]  # left, upper, right, lower, in pixels

BLUR_TRUNCATE = 2.5  # standard deviations at which the blur's kernel is cut off, as in A1111


class InitImage(NamedTuple):
    """An image that img2img and inpainting start from.

    The mask is white where the image may change; without a mask it may change everywhere.
    """

    image: Image.Image
    mask: Image.Image | None = None

    @property
    def image_hash(self) -> str:
        """Return the hash that a recipe records of the image."""
        return compute_image_hash(self.image)

    @property
    def mask_hash(self) -> str | None:
        """Return the hash that a recipe records of the mask, if there is one."""
        return None if self.mask is None else compute_image_hash(read_mask(self.mask))


def read_mask(mask: Image.Image, *, invert: bool = False) -> Image.Image:
    """Convert a mask to shades of grey.

    Args:
        mask: Any image. If a part of it is transparent, its opaque part is the mask. An alpha channel that is opaque
            everywhere is ignored, because some programs add one to every image.
        invert: Swap black and white.

    Raises:
        BadRecipe: The image has a mode that cannot be converted.
    """
    alpha = mask.getchannel("A") if mask.mode in {"RGBA", "LA", "PA"} else None
    grey = alpha if alpha is not None and alpha.getextrema() != (255, 255) else convert_image(mask, "L")
    return ImageOps.invert(grey) if invert else grey


def blur_mask(mask: Image.Image, blur: float) -> Image.Image:
    """Blur the edges of a mask by a Gaussian whose standard deviation is `blur` pixels."""
    if blur <= 0:
        return mask
    radius = int(BLUR_TRUNCATE * blur + 0.5)
    radius = min(radius, min(mask.size) - 1)  # the padding mirrors the image once and cannot be wider
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    gaussian = torch.exp(-(offsets**2) / (2 * blur**2))
    gaussian = gaussian / gaussian.sum()
    pixels = functional.pad(_to_tensor(mask), (radius, radius, radius, radius), mode="reflect")
    for kernel in (gaussian.view(1, 1, -1, 1), gaussian.view(1, 1, 1, -1)):
        pixels = functional.conv2d(pixels, kernel)
    return Image.fromarray(pixels[0, 0].round().clamp(0, 255).byte().numpy())


def latent_mask(mask: Image.Image, size: Resolution, *, is_rounded: bool = True) -> Tensor:
    """Scale a mask to the size of latents: (1, height, width), 1 where they change and 0 where they stay.

    Args:
        mask: A mask in shades of grey.
        size: Size of the latents.
        is_rounded: Round to 0 and 1. False: where the mask is grey, latents change in part.
    """
    values = _to_tensor(mask.resize(size, Image.Resampling.BICUBIC))[0] / 255
    return values.round() if is_rounded else values


def pixel_mask(mask: Image.Image, size: Resolution, *, is_rounded: bool = True) -> Tensor:
    """Scale a mask to the size of an image: (1, 1, height, width), 1 where it is white and 0 where it is black.

    Args:
        mask: A mask in shades of grey.
        size: Size of the image.
        is_rounded: Round to 0 and 1. False: keep the shades.
    """
    resized = mask if mask.size == size else mask.resize(size, RESAMPLING)
    values = _to_tensor(resized) / 255
    return values.round() if is_rounded else values


def fill_masked(image: Image.Image, mask: Image.Image) -> Image.Image:
    """Fill the masked part of an image with its surroundings, blurred more strongly further inside.

    Each masked pixel takes the weighted mean of the smallest square, out of ever larger ones, that holds any unmasked
    pixel.
    """
    pixels, weights = _to_tensor(image.convert("RGB")), 1 - _to_tensor(mask) / 255
    filled = _fill_from_coarser(pixels * weights, weights)
    return Image.fromarray(filled[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())


def crop_box(mask: Image.Image, padding: int, size: Resolution) -> MaskBox:
    """Return the box around the white part of a mask, with the aspect ratio of a size where the image allows it.

    Args:
        mask: A mask in shades of grey.
        padding: Pixels that are added on every side.
        size: The size that the box will be scaled to.

    Raises:
        BadRecipe: The mask is completely black.
    """
    bounds = mask.getbbox()
    if bounds is None:
        raise BadRecipe("the mask is completely black, so nothing would change: paint white where it should change")
    left, top, right, bottom = bounds
    horizontal = _clamp_span(left - padding, right + padding, mask.width)
    vertical = _clamp_span(top - padding, bottom + padding, mask.height)
    width, height = horizontal[1] - horizontal[0], vertical[1] - vertical[0]
    if width * size.height > height * size.width:
        vertical = _grow_span(vertical, width * size.height // size.width, mask.height)
    else:
        horizontal = _grow_span(horizontal, height * size.width // size.height, mask.width)
    return horizontal[0], vertical[0], horizontal[1], vertical[1]


def paste_part(image: Image.Image, part: Image.Image, box: MaskBox, mask: Image.Image) -> Image.Image:
    """Paste a new part into an image, where the mask of the whole image is white."""
    left, top, right, bottom = box
    canvas = image.convert("RGB").copy()
    canvas.paste(part.resize((right - left, bottom - top), RESAMPLING), (left, top))
    return Image.composite(canvas, image.convert("RGB"), mask)


def _fill_from_coarser(colours: Tensor, weights: Tensor) -> Tensor:
    """Fill what has no weight from a copy of half the size, recursively.

    Args:
        colours: (1, 3, height, width), multiplied by the weights.
        weights: (1, 1, height, width), 1 where the colour is known and 0 where it is not.
    """
    height, width = weights.shape[-2:]
    if min(height, width) == 1 or bool((weights > 0).all()):
        return colours / weights.clamp(min=1e-6)
    half = ((height + 1) // 2, (width + 1) // 2)
    coarse = _fill_from_coarser(
        functional.adaptive_avg_pool2d(colours, half), functional.adaptive_avg_pool2d(weights, half)
    )
    surroundings = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return colours + surroundings * (1 - weights)


def _to_tensor(image: Image.Image) -> Tensor:
    """Return the values of an image, (1, channels, height, width), 0 to 255."""
    values = torch.tensor(np.asarray(image), dtype=torch.float32)
    return values.view(image.height, image.width, -1).permute(2, 0, 1)[None]


def _clamp_span(start: int, end: int, limit: int) -> tuple[int, int]:
    return max(start, 0), min(end, limit)


def _grow_span(span: tuple[int, int], length: int, limit: int) -> tuple[int, int]:
    """Grow a span around its middle to a length, moved so that it stays between 0 and the limit."""
    length = min(max(length, span[1] - span[0]), limit)
    start = (span[0] + span[1] - length) // 2
    start = min(max(start, 0), limit - length)
    return start, start + length
