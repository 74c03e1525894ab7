"""Images on their way into latents and out of them: read, resized, encoded, decoded and hashed."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from velatura.base.base import Base
from velatura.errors import BadRecipe
from velatura.sampling.recipe.fields import ResizeMode
from velatura.sampling.recipe.sizes import Resolution

RESAMPLING = Image.Resampling.LANCZOS


def read_image(image: Image.Image) -> Image.Image:
    """Convert an image to RGB; transparent pixels become white, and 16 bits per colour become 8.

    Raises:
        BadRecipe: The image has a mode that cannot be converted to RGB.
    """
    if not image.has_transparency_data:
        return convert_image(image, "RGB")
    rgba = convert_image(image, "RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")


def convert_image(image: Image.Image, mode: str) -> Image.Image:
    """Convert an image to another mode; Pillow alone would clip 16-bit values at 255, so they are scaled first.

    Raises:
        BadRecipe: Pillow cannot convert between the two modes.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((values / (257 if values.max() > 255 else 1)).round().clip(0, 255).astype(np.uint8))
    try:
        return image.convert(mode)
    except ValueError:
        raise BadRecipe(f"an image in {image.mode} cannot be converted to {mode}: save it as a plain PNG") from None


def resize_image(image: Image.Image, size: Resolution, resize_mode: ResizeMode) -> Image.Image:
    """Resize an image to a size in pixels.

    Args:
        image: Any image.
        size: The size that the picture will have.
        resize_mode: "stretch" ignores the aspect ratio, "crop" covers the size and cuts off the rest, "fill" fits the
            image inside and repeats its edges outwards. "latent" returns the image unchanged, because the latents
            are resized after encoding.
    """
    if resize_mode == "latent" or image.size == size:
        return image
    if resize_mode == "stretch":
        return image.resize(size, RESAMPLING)
    if resize_mode == "crop":
        return ImageOps.fit(image, size, RESAMPLING)
    resized = image.resize(_fit_inside(image, size), RESAMPLING)
    left, top = (size.width - resized.width) // 2, (size.height - resized.height) // 2
    vertical, horizontal = (top, size.height - resized.height - top), (left, size.width - resized.width - left)
    pixels = np.asarray(resized)  # (height, width) or (height, width, channels)
    channel_padding = ((0, 0),) * (pixels.ndim - 2)
    return Image.fromarray(np.pad(pixels, (vertical, horizontal, *channel_padding), mode="edge"))


def encode_image(base: Base, image: Image.Image) -> Tensor:
    """Encode an RGB image into latents, (1, 4, height / 8, width / 8) for the VAE of SD1.

    The sides of the image must be multiples of the VAE's scale factor: see round_down.
    """
    return base.encode(image_pixels(image))


def image_pixels(image: Image.Image) -> Tensor:
    """Return the pixels of an RGB image as the VAE reads them, (1, 3, height, width) from -1 to 1."""
    values = torch.tensor(np.asarray(image), dtype=torch.float32)  # (height, width, 3), 0 to 255
    return values.permute(2, 0, 1)[None] / 127.5 - 1


def decode_image(base: Base, latents: Tensor) -> Image.Image:
    """Decode the latents of one picture, (4, height, width)."""
    pixels = base.decode(latents.unsqueeze(0))[0]  # (3, height, width), 0 to 1
    # A1111 truncates the fraction instead of rounding it
    return Image.fromarray((pixels * 255).byte().permute(1, 2, 0).contiguous().cpu().numpy())


def round_down(size: tuple[int, int], multiple: int) -> Resolution:
    """Round both sides of a size down to a multiple, but not below one."""
    width, height = size
    return Resolution(max(multiple, width - width % multiple), max(multiple, height - height % multiple))


def compute_image_hash(image: Image.Image) -> str:
    """Compute the hash that a recipe records of an image: ten hex digits of the sha256 of its size and RGB pixels."""
    pixels = read_image(image)
    return hashlib.sha256(f"{pixels.size}".encode() + pixels.tobytes()).hexdigest()[:10]


def _fit_inside(image: Image.Image, size: Resolution) -> Resolution:
    """Return the largest size with the image's aspect ratio that fits inside another; no side is below 1."""
    scale = min(size.width / image.width, size.height / image.height)
    return Resolution(*(max(1, round(side * scale)) for side in image.size))
