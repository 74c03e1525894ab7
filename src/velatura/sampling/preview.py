"""Small, approximate previews of latents, which take no decoding by the VAE."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from velatura.base.base import Base

linalg: Any = torch.linalg  # which has no types

SAMPLE_COUNT, SAMPLE_SIDE = 4, 16  # number and side of the latents that the linear map is fitted to
NOISE_SIZES = (1, 2, 4, 8, 16)  # sides of the noises whose sum these latents are
RIDGE_PENALTY = 1e-3


class Preview:
    """A linear map from latents to colours, fitted at the first call to what the base's VAE decodes smooth noise to."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._rgb_factors: Tensor | None = None

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Image.Image:
        """Return a small image with one pixel per latent.

        Args:
            latents: Denoised latents of one picture, (4, height, width).
        """
        if self._rgb_factors is None:
            self._rgb_factors = self._fit_rgb_factors()
        colours = _append_ones(latents.float().cpu().flatten(1).T) @ self._rgb_factors  # (height * width, 3)
        pixels = (colours.clamp(0, 1) * 255).byte().view(*latents.shape[-2:], 3)
        return Image.fromarray(pixels.contiguous().numpy())

    def _fit_rgb_factors(self) -> Tensor:
        """Fit the map to decoded latents by ridge regression, (channels + 1, 3)."""
        channels = self._base.latent_channels
        latents = _smooth_noise(channels)
        pixels = self._base.decode(latents).cpu()
        colours = functional.adaptive_avg_pool2d(pixels, (SAMPLE_SIDE, SAMPLE_SIDE)).permute(0, 2, 3, 1).reshape(-1, 3)
        features = _append_ones(latents.permute(0, 2, 3, 1).reshape(-1, channels))
        factors: Tensor = linalg.solve(
            features.T @ features + RIDGE_PENALTY * torch.eye(channels + 1), features.T @ colours
        )
        return factors


def _smooth_noise(channels: int) -> Tensor:
    """Return latents of variance 1 with patches of all sizes, (count, channels, side, side); the seed is fixed."""
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
