"""One walk from noise to a picture, laid out before its first step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from velatura.sampling.recipe.sampler_settings import SamplerSettings
from velatura.sampling.samplers.schedules import sigma_to_nearest_t, sigma_to_t

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (noisy latents, sigma, 0-d) -> the clean latents that are guessed
NoiseSampler = Callable[[Tensor, Tensor], Tensor]  # (sigma here, sigma there) -> noise of unit variance


class NoiseSource(Protocol):
    """Where fresh noise comes from, for all pictures of a batch."""

    def draw(self) -> Tensor:
        """The next noise of unit variance."""
        ...

    def brownian_noise_sampler(self, sigma_min: float, sigma_max: float) -> NoiseSampler:
        """One random path between two levels, whose differences are noise: the same whatever steps are taken."""
        ...


@dataclass(frozen=True)
class Trajectory:
    """The levels of noise that a walk stops at, and all that settles how it is walked.

    sigmas: noisiest first; known: all levels that the base was trained at, cleanest first, and times: their timesteps.
    low, high: the ends of the whole schedule, of which an image to begin from leaves a part. eta: of ancestral steps.
    noisy, clean, last: what noise, and an image's latents, are multiplied by at the start, and what all is divided by
    at the end.
    """

    sigmas: Tensor
    model_sigmas: Tensor
    timesteps: Tensor
    sigma_min: float
    sigma_max: float
    settings: SamplerSettings
    eta: float
    init_noise_sigma: float
    init_latents_factor: float = 1.0
    final_divisor: float = 1.0
    is_quantised: bool = False

    @property
    def step_count(self) -> int:
        """How often a walk yields."""
        return len(self.sigmas) - 1

    @property
    def steps(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each level with the next."""
        return pairwise(self.sigmas)

    @property
    def final_sigma(self) -> Tensor:
        """Where those stop that choose their own levels: at the cleanest that there is, or that was asked for."""
        requested_sigma_min = self.settings.sigma_min
        return torch.minimum(
            self.sigmas[0],
            self.model_sigmas.new_tensor(requested_sigma_min) if requested_sigma_min else self.model_sigmas[0],
        )

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep to call the model at, not rounded unless only some are allowed."""
        if self.is_quantised:
            return self.timesteps[sigma_to_nearest_t(self.model_sigmas, sigma)]
        return sigma_to_t(self.model_sigmas, sigma)

    def initial_latents(self, noise: Tensor, latents: Tensor | None) -> Tensor:
        """Where the walk starts: noise, over the latents of an image where there is one."""
        return (
            noise * self.init_noise_sigma
            if latents is None
            else latents * self.init_latents_factor + noise * self.init_noise_sigma
        )

    def ancestral_step(self, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        """Where an ancestral step goes down to, and how much fresh noise brings it up to the level it is bound for.

        The share of the latter is eta: Song et al. 2021, "Denoising Diffusion Implicit Models", equation 16, in sigmas.
        """
        sigma_up = torch.minimum(sigma_next, self.eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt())
        return (sigma_next**2 - sigma_up**2).sqrt(), sigma_up


SamplerFunction = Callable[[Denoiser, Tensor, Trajectory, NoiseSource], Iterator[Tensor]]
