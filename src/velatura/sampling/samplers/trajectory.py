"""The noise levels that a sampler steps along, and what else decides its steps, computed before the first step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from velatura.sampling.recipe.sampler_settings import SamplerSettings
from velatura.sampling.samplers.schedules import sigma_to_nearest_t, sigma_to_t

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (noisy latents, 0-d sigma) -> estimate of the clean latents
NoiseSampler = Callable[[Tensor, Tensor], Tensor]  # (sigma, sigma_next) -> noise of unit variance


class NoiseSource(Protocol):
    """A source of new noise for all pictures of a batch."""

    def draw(self) -> Tensor:
        """Return new noise of unit variance."""
        ...

    def brownian_noise_sampler(self, sigma_min: float, sigma_max: float) -> NoiseSampler:
        """Return a function that draws noise from a Brownian path, which does not depend on the steps taken."""
        ...


@dataclass(frozen=True)
class Trajectory:
    """Noise levels of one pass, and what else decides its steps.

    Attributes:
        sigmas: The noise levels, the noisiest first; one more than there are steps.
        model_sigmas: All noise levels that the model was trained at, the cleanest first.
        timesteps: The timesteps of these levels.
        sigma_min, sigma_max: The ends of the whole schedule above 0; img2img takes only a part of it.
        settings: The settings of the sampler.
        eta: Amount of new noise in ancestral steps; 0: none, 1: as much as DDPM.
        init_noise_sigma: Factor of the first noise.
        init_latents_factor: Factor of the latents of an init image.
        final_divisor: Divisor of the latents after every step, for samplers that end above sigma 0.
        is_quantised: Call the model at whole timesteps only.
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
        """Number of steps."""
        return len(self.sigmas) - 1

    @property
    def steps(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of each level and the next."""
        return pairwise(self.sigmas)

    @property
    def final_sigma(self) -> Tensor:
        """Return the level where samplers end that choose their levels, the cleanest unless settings say otherwise."""
        requested_sigma_min = self.settings.sigma_min
        return torch.minimum(
            self.sigmas[0],
            self.model_sigmas.new_tensor(requested_sigma_min) if requested_sigma_min else self.model_sigmas[0],
        )

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the timestep to call the model at; it is fractional unless is_quantised."""
        if self.is_quantised:
            return self.timesteps[sigma_to_nearest_t(self.model_sigmas, sigma)]
        return sigma_to_t(self.model_sigmas, sigma)

    def initial_latents(self, noise: Tensor, latents: Tensor | None) -> Tensor:
        """Return the latents that the first step starts from: noise, added to the latents of an image if given."""
        if latents is None:
            return noise * self.init_noise_sigma
        return latents * self.init_latents_factor + noise * self.init_noise_sigma

    def ancestral_step(self, sigma: Tensor, sigma_next: Tensor) -> tuple[Tensor, Tensor]:
        """Split an ancestral step (Song et al. 2021, "Denoising Diffusion Implicit Models", equation 16, in sigmas).

        Returns:
            sigma_down, the level to step to, and sigma_up, the standard deviation of the noise to add afterwards.
        """
        sigma_up = torch.minimum(sigma_next, self.eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2).sqrt())
        return (sigma_next**2 - sigma_up**2).sqrt(), sigma_up


# (denoiser, first latents, trajectory, noise) -> the latents after each step
SamplerFunction = Callable[[Denoiser, Tensor, Trajectory, NoiseSource], Iterator[Tensor]]
