"""Hires fix: from the latents of the first pass to those that the second, larger pass starts from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from velatura.base.base import Base
from velatura.base.image_condition import masked_condition
from velatura.errors import UnknownName
from velatura.library import Library
from velatura.library.model_files import FileState
from velatura.sampling.images import decode_image, encode_image, round_down
from velatura.sampling.recipe.recipe import Recipe
from velatura.sampling.recipe.sizes import HiresTarget, Resolution
from velatura.upscaling import Upscaler, open_upscaler, upscale_image


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


# A1111's names of the networks that it downloads, and the stems of their files; infotexts have these names
REAL_ESRGAN_FILES = {
    "R-ESRGAN General 4xV3": "realesr-general-x4v3",
    "R-ESRGAN General WDN 4xV3": "realesr-general-wdn-x4v3",
    "R-ESRGAN AnimeVideo": "realesr-animevideov3",
    "R-ESRGAN 4x+": "RealESRGAN_x4plus",
    "R-ESRGAN 4x+ Anime6B": "RealESRGAN_x4plus_anime_6B",
    "R-ESRGAN 2x+": "RealESRGAN_x2plus",
}
# The networks that jobs hold now, so that the pictures of one request share theirs
_OPEN_UPSCALERS: WeakValueDictionary[tuple[Path, FileState], Upscaler] = WeakValueDictionary()


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


def is_built_in(name: str) -> bool:
    """Return True for an upscaler that needs no file, in upper or lower case."""
    return name.lower() in {upscaler.lower() for upscaler in (*LATENT_UPSCALERS, *PIXEL_UPSCALERS)}


def find_recipe_upscaler(recipe: Recipe, library: Library | None) -> Upscaler | None:
    """Return the network by which a recipe upscales its first pass, None for a way that needs no file.

    Args:
        recipe: The recipe; without a second pass it needs no network, whatever its `hires_upscaler` is.
        library: Where files are found, None for nowhere.

    Raises:
        UnknownName: Neither such a way nor such a file in the library exists; the message suggests similar ones.
        BadFile: The file cannot be read.
    """
    name = recipe.hires_upscaler
    if library is None or not recipe.has_second_pass or is_built_in(name):
        return None
    return find_upscaler_file(name, library)


def find_upscaler_file(name: str, library: Library) -> Upscaler:
    """Return an upscaling network of a library by the name of its file, or by A1111's name of it.

    Raises:
        UnknownName: The library has no such file; the message suggests similar names, also of upscalers without files.
        BadFile: The file cannot be read.
    """
    file_by_lower = {known.lower(): file for known, file in REAL_ESRGAN_FILES.items()}
    try:
        file = library.entry(file_by_lower.get(name.lower(), name), "upscaler").file
        return _open_upscaler(file.path, file.state)
    except UnknownName:
        files = [entry.name for entry in library.entries(kind="upscaler")]
        known = (*LATENT_UPSCALERS, *PIXEL_UPSCALERS, *files)
        error = UnknownName.with_suggestions("upscaler", name, known)
        if name.lower() in file_by_lower:
            file = f"{file_by_lower[name.lower()]}.pth"
            error = UnknownName(f"{name} needs the file {file}: put it into models/RealESRGAN of the library")
        raise error from None


def _open_upscaler(path: Path, state: FileState) -> Upscaler:
    """Return an upscaler that is open already, or open it if there is none or its file has changed."""
    upscaler = _OPEN_UPSCALERS.get((path, state))
    if upscaler is None:
        upscaler = _OPEN_UPSCALERS[path, state] = open_upscaler(path)
    return upscaler


def upscale_latents(base: Base, latents: Tensor, target: HiresTarget, upscaler: str | Upscaler) -> Tensor:
    """Upscale the latents of the first pass, and crop them centrally to the size of the second pass.

    Args:
        base: Decodes and encodes for the upscalers that work on pixels.
        latents: (pictures, 4, height, width).
        target: The size to upscale to in pixels, and what is then cut off in latents.
        upscaler: A name from LATENT_UPSCALERS, which resize the latents themselves, or from PIXEL_UPSCALERS, which
            decode, resize and encode again. A network does that too, tile by tile on the base's device.
    """
    latent_factor = base.family.vae_scale_factor
    size = Resolution(target.upscale_to.width // latent_factor, target.upscale_to.height // latent_factor)
    if isinstance(upscaler, str) and upscaler in LATENT_UPSCALERS:
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


def _upscale_in_pixels(base: Base, latents: Tensor, target: HiresTarget, upscaler: str | Upscaler) -> Tensor:
    pixel_size = round_down(target.upscale_to, base.family.vae_scale_factor)
    encoded: list[Tensor] = []
    for picture_latents in latents:
        image = decode_image(base, picture_latents)
        if isinstance(upscaler, Upscaler):
            image = upscale_image(upscaler, image, pixel_size, device=base.device)
        else:
            image = image.resize(pixel_size, PIXEL_UPSCALERS[upscaler])
        encoded.append(encode_image(base, image))
    return torch.cat(encoded).to(latents.device)
