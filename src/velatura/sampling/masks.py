"""Pictures to begin from: brought to size, and with a mask that says what is to be painted anew."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from velatura.errors import BadRecipe
from velatura.sampling.fields import Fit
from velatura.sampling.sizes import Size

Box = tuple[int, int, int, int]  # left, upper, right, lower, in pixels

RESAMPLING = Image.Resampling.LANCZOS
NEARBY = 2.5  # standard deviations of a blur that are reckoned with, the webui's


class Source(NamedTuple):
    """What a picture begins from: an image, and a mask that is white where it may change (everywhere without one)."""

    image: Image.Image
    mask: Image.Image | None = None


def fitted(image: Image.Image, size: Size, fit: Fit) -> Image.Image:
    """An image brought to a size: stretched, cropped to cover it, or shrunk into it with its edges drawn out.

    "latent" leaves it to the latents, which are stretched after encoding: the image comes back as it is.
    """
    if fit == "latent" or image.size == size:
        return image
    if fit == "stretch":
        return image.resize(size, RESAMPLING)
    if fit == "crop":
        return ImageOps.fit(image, size, RESAMPLING)
    inside = image.resize(_inside(image, size), RESAMPLING)
    left, top = ((outer - inner) // 2 for outer, inner in zip(size, inside.size, strict=True))
    margins = (top, size.height - inside.height - top), (left, size.width - inside.width - left)
    pixels = np.asarray(inside)
    return Image.fromarray(np.pad(pixels, (*margins, *((0, 0),) * (pixels.ndim - 2)), mode="edge"))


def read_image(image: Image.Image) -> Image.Image:
    """An image in RGB; what is transparent in it is white, and 16 bits a colour become 8.

    Raises BadRecipe for one whose colours are of a kind that has no way to RGB.
    """
    if not image.has_transparency_data:
        return _converted(image, "RGB")
    opaque = _converted(image, "RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), opaque).convert("RGB")


def read_mask(mask: Image.Image, *, inverted: bool = False) -> Image.Image:
    """A mask in shades of grey: of an image that is transparent somewhere its opaque part is white.

    An alpha channel that is opaque all over says nothing, and programs add one to any picture.
    """
    alpha = mask.getchannel("A") if mask.mode in {"RGBA", "LA", "PA"} else None
    grey = alpha if alpha is not None and alpha.getextrema() != (255, 255) else _converted(mask, "L")
    return ImageOps.invert(grey) if inverted else grey


def softened(mask: Image.Image, blur: float) -> Image.Image:
    """A mask with its edges blurred over so many pixels (the standard deviation of a Gaussian)."""
    if blur <= 0:
        return mask
    reach = int(NEARBY * blur + 0.5)
    reach = min(reach, min(mask.size) - 1)  # beyond the edges the picture is mirrored, once
    across = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-(across**2) / (2 * blur**2))
    weights = weights / weights.sum()
    shades = functional.pad(_pixels(mask), (reach, reach, reach, reach), mode="reflect")
    for kernel in (weights.view(1, 1, -1, 1), weights.view(1, 1, 1, -1)):
        shades = functional.conv2d(shades, kernel)
    return Image.fromarray(shades[0, 0].round().clamp(0, 255).byte().numpy())


def latent_mask(mask: Image.Image, size: Size) -> Tensor:
    """One where latents are painted anew, zero where they stay: (1, height, width) of the latents, nothing between."""
    return (_pixels(mask.resize(size, Image.Resampling.BICUBIC))[0] / 255).round()


def filled(image: Image.Image, mask: Image.Image) -> Image.Image:
    """The image with what is masked replaced by its surroundings, blurred the wider the further inside.

    Weighed means over ever larger squares: each masked pixel takes the smallest that knows anything.
    """
    pixels, known = _pixels(image.convert("RGB")), 1 - _pixels(mask) / 255
    return _to_image(_surrounded(pixels * known, known))


def crop_box(mask: Image.Image, padding: int, size: Size) -> Box:
    """The part of a picture that holds all of a mask, with so many pixels around, in the shape of a size.

    Raises BadRecipe for a mask that is all black.
    """
    found = mask.getbbox()
    if found is None:
        raise BadRecipe("the mask is black all over, so nothing would change: paint white where it should")
    left, top, right, bottom = found
    across = _widened(left - padding, right + padding, mask.width)
    down = _widened(top - padding, bottom + padding, mask.height)
    wide, high = across[1] - across[0], down[1] - down[0]
    if wide * size.height > high * size.width:
        down = _grown(down, wide * size.height // size.width, mask.height)
    else:
        across = _grown(across, high * size.width // size.height, mask.width)
    return across[0], down[0], across[1], down[1]


def pasted(whole: Image.Image, part: Image.Image, box: Box, mask: Image.Image) -> Image.Image:
    """A picture with a part of it painted anew, where the mask of the whole is white."""
    left, top, right, bottom = box
    sheet = whole.convert("RGB").copy()
    sheet.paste(part.resize((right - left, bottom - top), RESAMPLING), (left, top))
    return Image.composite(sheet, whole.convert("RGB"), mask)


def _surrounded(colours: Tensor, known: Tensor) -> Tensor:
    """Colours, weighed by how far each is known, completed from a copy of half the size, and that likewise."""
    height, width = known.shape[-2:]
    if min(height, width) == 1 or bool((known > 0).all()):
        return colours / known.clamp(min=1e-6)
    half = ((height + 1) // 2, (width + 1) // 2)
    coarse = _surrounded(functional.adaptive_avg_pool2d(colours, half), functional.adaptive_avg_pool2d(known, half))
    around = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return colours + around * (1 - known)


def _pixels(image: Image.Image) -> Tensor:
    """The values of an image, (1, channels, height, width), 0 to 255."""
    values = torch.tensor(np.asarray(image), dtype=torch.float32)
    return values.view(image.height, image.width, -1).permute(2, 0, 1)[None]


def _to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())


def _inside(image: Image.Image, size: Size) -> Size:
    """The largest size of an image's shape in another one; no side of it ends at nothing."""
    scale = min(size.width / image.width, size.height / image.height)
    return Size(*(max(1, round(side * scale)) for side in image.size))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """An image in another mode, which cuts off what 16 bits hold beyond 255 unless they are brought down first."""
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((values / (257 if values.max() > 255 else 1)).round().clip(0, 255).astype(np.uint8))
    try:
        return image.convert(mode)
    except ValueError:
        raise BadRecipe(f"an image in {image.mode} has no way to {mode}: save it as a plain PNG") from None


def _widened(start: int, end: int, most: int) -> tuple[int, int]:
    return max(start, 0), min(end, most)


def _grown(span: tuple[int, int], length: int, most: int) -> tuple[int, int]:
    """A span brought to a length around its middle, moved inside the picture, and no longer than that."""
    length = min(max(length, span[1] - span[0]), most)
    start = (span[0] + span[1] - length) // 2
    start = min(max(start, 0), most - length)
    return start, start + length
