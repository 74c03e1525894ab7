"""What latents will look like, roughly and at once, without decoding them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from velatura.base.base import Base

linalg: Any = torch.linalg  # which has no types

SAMPLE_COUNT, SAMPLE_SIDE = 4, 16  # of the latents whose decoding the colours are fitted to
NOISE_SIZES = (1, 2, 4, 8, 16)  # sizes of the noise that they are made of
RIDGE_PENALTY = 1e-3


class Preview:
    """Colours of latents by a linear map, fitted once to what the base's own autoencoder makes of smooth noise."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._rgb_factors: Tensor | None = None

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Image.Image:
        """A small picture, a pixel for each latent, of latents (4, height, width) that are nearly clean."""
        if self._rgb_factors is None:
            self._rgb_factors = self._fit_rgb_factors()
        colours = _append_ones(latents.float().cpu().flatten(1).T) @ self._rgb_factors  # (places, 3)
        pixels = (colours.clamp(0, 1) * 255).byte().view(*latents.shape[-2:], 3)
        return Image.fromarray(pixels.contiguous().numpy())

    def _fit_rgb_factors(self) -> Tensor:
        """The map (channels + 1, 3) that comes nearest to decoding, by least squares."""
        channels = int(self._base.unet.config["in_channels"])
        latents = _smooth_noise(channels)
        pixels = self._base.decode(latents).cpu()
        colours = functional.adaptive_avg_pool2d(pixels, (SAMPLE_SIDE, SAMPLE_SIDE)).permute(0, 2, 3, 1).reshape(-1, 3)
        features = _append_ones(latents.permute(0, 2, 3, 1).reshape(-1, channels))
        factors: Tensor = linalg.solve(
            features.T @ features + RIDGE_PENALTY * torch.eye(channels + 1), features.T @ colours
        )
        return factors


def _smooth_noise(channels: int) -> Tensor:
    """Latents (SAMPLES, channels, SIDE, SIDE) of variance 1 with patches of all sizes, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(SAMPLE_COUNT, channels, size, size, generator=generator) for size in NOISE_SIZES]
    upscaled = [
        functional.interpolate(noise, size=(SAMPLE_SIDE, SAMPLE_SIDE), mode="bilinear", align_corners=False)
        for noise in noises
    ]
    mixed = torch.stack(upscaled).sum(0)
    return mixed / mixed.std()


def _append_ones(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
