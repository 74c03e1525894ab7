"""Pictures to begin from: brought to size, and with a mask that says what is to be painted anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from velatura.errors import BadRecipe
from velatura.sampling.recipe.fields import ResizeMode
from velatura.sampling.recipe.sizes import Resolution

MaskBox = tuple[int, int, int, int]  # left, upper, right, lower, in pixels

RESAMPLING = Image.Resampling.LANCZOS
BLUR_TRUNCATE = 2.5  # standard deviations of a blur that are reckoned with, the webui's


class InitImage(NamedTuple):
    """What a picture begins from: an image, and a mask that is white where it may change (everywhere without one)."""

    image: Image.Image
    mask: Image.Image | None = None


def resize_image(image: Image.Image, size: Resolution, resize_mode: ResizeMode) -> Image.Image:
    """An image brought to a size: stretched, cropped to cover it, or shrunk into it with its edges drawn out.

    "latent" leaves it to the latents, which are stretched after encoding: the image comes back as it is.
    """
    if resize_mode == "latent" or image.size == size:
        return image
    if resize_mode == "stretch":
        return image.resize(size, RESAMPLING)
    if resize_mode == "crop":
        return ImageOps.fit(image, size, RESAMPLING)
    resized = image.resize(_fit_inside(image, size), RESAMPLING)
    left, top = ((outer - inner) // 2 for outer, inner in zip(size, resized.size, strict=True))
    margins = (top, size.height - resized.height - top), (left, size.width - resized.width - left)
    pixels = np.asarray(resized)
    return Image.fromarray(np.pad(pixels, (*margins, *((0, 0),) * (pixels.ndim - 2)), mode="edge"))


def read_image(image: Image.Image) -> Image.Image:
    """An image in RGB; what is transparent in it is white, and 16 bits a colour become 8.

    Raises BadRecipe for one whose colours are of a kind that has no way to RGB.
    """
    if not image.has_transparency_data:
        return _convert(image, "RGB")
    rgba = _convert(image, "RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")


def read_mask(mask: Image.Image, *, invert: bool = False) -> Image.Image:
    """A mask in shades of grey: of an image that is transparent somewhere its opaque part is white.

    An alpha channel that is opaque all over says nothing, and programs add one to any picture.
    """
    alpha = mask.getchannel("A") if mask.mode in {"RGBA", "LA", "PA"} else None
    grey = alpha if alpha is not None and alpha.getextrema() != (255, 255) else _convert(mask, "L")
    return ImageOps.invert(grey) if invert else grey


def blur_mask(mask: Image.Image, blur: float) -> Image.Image:
    """A mask with its edges blurred over so many pixels (the standard deviation of a Gaussian)."""
    if blur <= 0:
        return mask
    radius = int(BLUR_TRUNCATE * blur + 0.5)
    radius = min(radius, min(mask.size) - 1)  # beyond the edges the picture is mirrored, once
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32)
    gaussian = torch.exp(-(offsets**2) / (2 * blur**2))
    gaussian = gaussian / gaussian.sum()
    pixels = functional.pad(_to_tensor(mask), (radius, radius, radius, radius), mode="reflect")
    for kernel in (gaussian.view(1, 1, -1, 1), gaussian.view(1, 1, 1, -1)):
        pixels = functional.conv2d(pixels, kernel)
    return Image.fromarray(pixels[0, 0].round().clamp(0, 255).byte().numpy())


def latent_mask(mask: Image.Image, size: Resolution) -> Tensor:
    """One where latents are painted anew, zero where they stay: (1, height, width) of the latents, nothing between."""
    return (_to_tensor(mask.resize(size, Image.Resampling.BICUBIC))[0] / 255).round()


def fill_masked(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image with what is masked replaced by its surroundings, blurred the wider the further inside.

    Weighed means over ever larger squares: each masked pixel takes the smallest that knows anything.
    """
    pixels, weights = _to_tensor(image.convert("RGB")), 1 - _to_tensor(mask) / 255
    return _to_image(_fill_from_coarser(pixels * weights, weights))


def crop_box(mask: Image.Image, padding: int, size: Resolution) -> MaskBox:
    """The part of a picture that holds all of a mask, with so many pixels around, in the shape of a size.

    Raises BadRecipe for a mask that is all black.
    """
    bounds = mask.getbbox()
    if bounds is None:
        raise BadRecipe("the mask is black all over, so nothing would change: paint white where it should")
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
    """A picture with a part of it painted anew, where the mask of the whole is white."""
    left, top, right, bottom = box
    canvas = image.convert("RGB").copy()
    canvas.paste(part.resize((right - left, bottom - top), RESAMPLING), (left, top))
    return Image.composite(canvas, image.convert("RGB"), mask)


def _fill_from_coarser(colours: Tensor, weights: Tensor) -> Tensor:
    """Colours, weighed by how far each is known, completed from a copy of half the size, and that likewise."""
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
    """The values of an image, (1, channels, height, width), 0 to 255."""
    values = torch.tensor(np.asarray(image), dtype=torch.float32)
    return values.view(image.height, image.width, -1).permute(2, 0, 1)[None]


def _to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())


def _fit_inside(image: Image.Image, size: Resolution) -> Resolution:
    """The largest size of an image's shape in another one; no side of it ends at nothing."""
    scale = min(size.width / image.width, size.height / image.height)
    return Resolution(*(max(1, round(side * scale)) for side in image.size))


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """An image in another mode, which cuts off what 16 bits hold beyond 255 unless they are brought down first."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((values / (257 if values.max() > 255 else 1)).round().clip(0, 255).astype(np.uint8))
    try:
        return image.convert(mode)
    except ValueError:
        raise BadRecipe(f"an image in {image.mode} has no way to {mode}: save it as a plain PNG") from None


def _clamp_span(start: int, end: int, limit: int) -> tuple[int, int]:
    return max(start, 0), min(end, limit)


def _grow_span(span: tuple[int, int], length: int, limit: int) -> tuple[int, int]:
    """A span brought to a length around its middle, moved inside the picture, and no longer than that."""
    length = min(max(length, span[1] - span[0]), limit)
    start = (span[0] + span[1] - length) // 2
    start = min(max(start, 0), limit - length)
    return start, start + length
