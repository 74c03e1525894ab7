"""How much noise a picture carries at each of the thousand timesteps."""

from __future__ import annotations

import torch
from torch import Tensor


class Schedule:
    """The noise schedule a base was trained with.

    alphas_cumprod, sigmas: (1000,) float32 on the CPU. They are computed in float64 and rounded once, as LDM does.
    """

    def __init__(self, beta_start: float = 0.00085, beta_end: float = 0.012, timesteps: int = 1000) -> None:
        roots = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64)
        alphas = torch.cumprod(1 - roots**2, dim=0)
        self.alphas_cumprod = alphas.float()
        self.sigmas = ((1 - alphas) / alphas).sqrt().float()

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mix noise into clean latents: sqrt(a) x + sqrt(1 - a) n, a being the cumulative alpha (DDPM, eq. 4).

        latents, noise: (batch, 4, height, width); timesteps: (batch,), 0 to 999, 999 the noisiest.
        """
        alphas = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1).to(latents.device)
        return (alphas.sqrt() * latents + (1 - alphas).sqrt() * noise).to(latents.dtype)
