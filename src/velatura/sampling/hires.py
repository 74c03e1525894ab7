"""From the latents of a first pass to those that a second, larger pass starts from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from velatura.base.base import Base
from velatura.errors import UnknownName
from velatura.sampling.recipe.sizes import HiresTarget, Resolution


class LatentMode(NamedTuple):
    """How latents are stretched: torch's name for it, and whether it is antialiased."""

    mode: str
    antialias: bool = False


# The webui's names
LATENT_UPSCALERS = {
    "Latent": LatentMode("bilinear"),
    "Latent (antialiased)": LatentMode("bilinear", antialias=True),
    "Latent (bicubic)": LatentMode("bicubic"),
    "Latent (bicubic antialiased)": LatentMode("bicubic", antialias=True),
    "Latent (nearest)": LatentMode("nearest"),
    "Latent (nearest-exact)": LatentMode("nearest-exact"),
}
PIXEL_UPSCALERS = {
    "None": Image.Resampling.LANCZOS,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}


def find_upscaler(name: str) -> str:
    """The name of an upscaler in any case; raises UnknownName with those that are near."""
    name_by_lower = {upscaler.lower(): upscaler for upscaler in (*LATENT_UPSCALERS, *PIXEL_UPSCALERS)}
    if name.lower() not in name_by_lower:
        raise UnknownName.with_suggestions("upscaler", name, name_by_lower.values())
    return name_by_lower[name.lower()]


def upscale_latents(base: Base, latents: Tensor, target: HiresTarget, upscaler: str) -> Tensor:
    """Latents (pictures, 4, height, width) enlarged, and cut to size around their middle.

    The upscalers of latents stretch them; the others decode, stretch pixels and encode again.
    """
    latent_factor = base.family.vae_scale_factor
    size = Resolution(target.upscale_to.width // latent_factor, target.upscale_to.height // latent_factor)
    in_latents = upscaler in LATENT_UPSCALERS
    upscaled = (
        _upscale_in_latents(latents, size, LATENT_UPSCALERS[upscaler])
        if in_latents
        else _upscale_in_pixels(base, latents, target, upscaler)
    )
    (left, right), (top, bottom) = ((extra // 2, (extra + 1) // 2) for extra in target.truncate)
    return upscaled[:, :, top : size.height - bottom, left : size.width - right]


def _upscale_in_latents(latents: Tensor, size: Resolution, upscale_mode: LatentMode) -> Tensor:
    return functional.interpolate(
        latents, size=(size.height, size.width), mode=upscale_mode.mode, antialias=upscale_mode.antialias
    )


def _upscale_in_pixels(base: Base, latents: Tensor, target: HiresTarget, upscaler: str) -> Tensor:
    latent_factor = base.family.vae_scale_factor
    pixel_size = Resolution(*(side - side % latent_factor for side in target.upscale_to))
    encoded: list[Tensor] = []
    for picture_latents in latents:
        pixels = (base.decode(picture_latents[None])[0] * 255).byte().permute(1, 2, 0).cpu().numpy()
        image = Image.fromarray(np.ascontiguousarray(pixels)).resize(pixel_size, PIXEL_UPSCALERS[upscaler])
        values = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1)
        encoded.append(base.encode(values[None] / 127.5 - 1))
    return torch.cat(encoded).to(latents.device)
