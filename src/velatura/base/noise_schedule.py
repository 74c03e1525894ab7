"""How much noise a picture carries at each of the thousand timesteps."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_ALPHA_CUMPROD = (
    4.8973451890853435e-08  # of a picture at the end, for a sigma that can be divided by; A1111's and ComfyUI's
)


class NoiseSchedule:
    """The noise schedule a base was trained with.

    alphas_cumprod, sigmas: (1000,) float32 on the CPU. They are computed in float64 and rounded once, as LDM does.
    zero_snr: stretched until nothing of the picture is left at the end (Lin et al. 2023, algorithm 1).
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

        latents, noise: (batch, 4, height, width); timesteps: (batch,), 0 to 999, 999 the noisiest.
        """
        alphas_cumprod = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1).to(latents.device)
        return (alphas_cumprod.sqrt() * latents + (1 - alphas_cumprod).sqrt() * noise).to(latents.dtype)


def _rescale_to_zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """The schedule shifted and scaled so that it ends in noise alone, and starts as it did."""
    sqrt_alphas_cumprod = alphas_cumprod.sqrt()
    first, last = sqrt_alphas_cumprod[0].clone(), sqrt_alphas_cumprod[-1].clone()
    rescaled = ((sqrt_alphas_cumprod - last) * first / (first - last)) ** 2
    rescaled[-1] = MIN_ALPHA_CUMPROD
    return rescaled
