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
from velatura.sampling.sizes import SecondPass, Size


class LatentMode(NamedTuple):
    """How latents are stretched: torch's name for it, and whether it is antialiased."""

    mode: str
    antialias: bool = False


# The webui's names
LATENT = {
    "Latent": LatentMode("bilinear"),
    "Latent (antialiased)": LatentMode("bilinear", antialias=True),
    "Latent (bicubic)": LatentMode("bicubic"),
    "Latent (bicubic antialiased)": LatentMode("bicubic", antialias=True),
    "Latent (nearest)": LatentMode("nearest"),
    "Latent (nearest-exact)": LatentMode("nearest-exact"),
}
PIXELS = {
    "None": Image.Resampling.LANCZOS,
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
}


def find_upscaler(name: str) -> str:
    """The name of an upscaler in any case; raises UnknownName with those that are near."""
    by_lower = {each.lower(): each for each in (*LATENT, *PIXELS)}
    if name.lower() not in by_lower:
        raise UnknownName.among("upscaler", name, by_lower.values())
    return by_lower[name.lower()]


def enlarged(base: Base, latents: Tensor, to: SecondPass, upscaler: str) -> Tensor:
    """Latents (pictures, 4, height, width) enlarged, and cut to size around their middle.

    The upscalers of latents stretch them; the others decode, stretch pixels and encode again.
    """
    factor = base.family.latent_factor
    size = Size(to.enlarged.width // factor, to.enlarged.height // factor)
    in_latents = upscaler in LATENT
    whole = _stretched(latents, size, LATENT[upscaler]) if in_latents else _encoded(base, latents, to, upscaler)
    (left, right), (top, bottom) = ((extra // 2, (extra + 1) // 2) for extra in to.surplus)
    return whole[:, :, top : size.height - bottom, left : size.width - right]


def _stretched(latents: Tensor, size: Size, how: LatentMode) -> Tensor:
    return functional.interpolate(latents, size=(size.height, size.width), mode=how.mode, antialias=how.antialias)


def _encoded(base: Base, latents: Tensor, to: SecondPass, upscaler: str) -> Tensor:
    factor = base.family.latent_factor
    whole = Size(*(side - side % factor for side in to.enlarged))
    encoded: list[Tensor] = []
    for each in latents:
        pixels = (base.decode(each[None])[0] * 255).byte().permute(1, 2, 0).cpu().numpy()
        image = Image.fromarray(np.ascontiguousarray(pixels)).resize(whole, PIXELS[upscaler])
        values = torch.tensor(np.asarray(image), dtype=torch.float32).permute(2, 0, 1)
        encoded.append(base.encode(values[None] / 127.5 - 1))
    return torch.cat(encoded).to(latents.device)
