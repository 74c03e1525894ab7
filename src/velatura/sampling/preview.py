"""What latents will look like, roughly and at once, without decoding them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from velatura.base.base import Base

linalg: Any = torch.linalg  # which has no types

SAMPLES, SIDE = 4, 16  # of the latents whose decoding the colours are fitted to
ROUGHNESS = (1, 2, 4, 8, 16)  # sizes of the noise that they are made of
RIDGE = 1e-3


class Preview:
    """Colours of latents by a linear map, fitted once to what the base's own autoencoder makes of smooth noise."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._map: Tensor | None = None

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Image.Image:
        """A small picture, a pixel for each latent, of latents (4, height, width) that are nearly clean."""
        if self._map is None:
            self._map = self._fitted()
        colours = _with_one(latents.float().cpu().flatten(1).T) @ self._map  # (places, 3)
        pixels = (colours.clamp(0, 1) * 255).byte().view(*latents.shape[-2:], 3)
        return Image.fromarray(pixels.contiguous().numpy())

    def _fitted(self) -> Tensor:
        """The map (channels + 1, 3) that comes nearest to decoding, by least squares."""
        channels = int(self._base.unet.config["in_channels"])
        latents = _smooth_noise(channels)
        pixels = self._base.decode(latents).cpu()
        colours = functional.adaptive_avg_pool2d(pixels, (SIDE, SIDE)).permute(0, 2, 3, 1).reshape(-1, 3)
        read = _with_one(latents.permute(0, 2, 3, 1).reshape(-1, channels))
        found: Tensor = linalg.solve(read.T @ read + RIDGE * torch.eye(channels + 1), read.T @ colours)
        return found


def _smooth_noise(channels: int) -> Tensor:
    """Latents (SAMPLES, channels, SIDE, SIDE) of variance 1 with patches of all sizes, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.randn(SAMPLES, channels, size, size, generator=generator) for size in ROUGHNESS]
    grown = [functional.interpolate(each, size=(SIDE, SIDE), mode="bilinear", align_corners=False) for each in layers]
    mixed = torch.stack(grown).sum(0)
    return mixed / mixed.std()


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
