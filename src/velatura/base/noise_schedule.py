"""Noise schedule: the amount of noise at each of the thousand training timesteps."""

from __future__ import annotations

import torch
from torch import Tensor

# Replaces the zero at the last timestep of a zero-SNR schedule, so that its sigma is finite (A1111's and ComfyUI's)
MIN_ALPHA_CUMPROD = 4.8973451890853435e-08


class NoiseSchedule:
    """Noise schedule with which a base was trained, "scaled linear" in diffusers' words.

    `alphas_cumprod` and `sigmas` are (timesteps,) float32 on the CPU. They are computed in float64 and rounded once, as
    LDM does.

    Args:
        beta_start, beta_end: First and last beta; the square roots between them are evenly spaced.
        timesteps: Number of training timesteps.
        zero_snr: Rescale the schedule to zero terminal SNR: pure noise at the last timestep (Lin et al. 2023,
            "Common diffusion noise schedules and sample steps are flawed", algorithm 1).
    """

    def __init__(
        self,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        timesteps: int = 1000,
        *,
        zero_snr: bool = False,
    ) -> None:
        sqrt_betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64)
        alphas_cumprod = torch.cumprod(1 - sqrt_betas**2, dim=0)
        if zero_snr:
            alphas_cumprod = _rescale_to_zero_snr(alphas_cumprod)
        self.beta_start, self.beta_end, self.zero_snr = beta_start, beta_end, zero_snr
        self.alphas_cumprod = alphas_cumprod.float()
        self.sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().float()

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mix noise into clean latents: sqrt(a) x + sqrt(1 - a) n, a being the cumulative alpha (DDPM, eq. 4).

        Args:
            latents, noise: (batch, 4, height / 8, width / 8).
            timesteps: (batch,), 0 to 999, 999 the noisiest.
        """
        alphas_cumprod = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1).to(latents.device)
        return (alphas_cumprod.sqrt() * latents + (1 - alphas_cumprod).sqrt() * noise).to(latents.dtype)


def _rescale_to_zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """Shift and scale the square roots so that the first value stays and the last one becomes zero."""
    sqrt_alphas_cumprod = alphas_cumprod.sqrt()
    first, last = sqrt_alphas_cumprod[0].clone(), sqrt_alphas_cumprod[-1].clone()
    rescaled = ((sqrt_alphas_cumprod - last) * first / (first - last)) ** 2
    rescaled[-1] = MIN_ALPHA_CUMPROD
    return rescaled
