"""Latent consistency models (Luo et al. 2023): each guess is the picture, and fresh noise leads to the next."""

from collections.abc import Iterator

from torch import Tensor

from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

LCM_TIMESTEP_INTERVAL = 20  # of the thousand timesteps, those that the model was distilled at: 19, 39, ...
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # sigma_data and the factor of timesteps in the paper's boundary condition


def lcm(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Guess the picture and make it as noisy as the next level is."""
    for sigma, sigma_next in trajectory.steps:
        scaled_timestep_squared = (trajectory.timestep(sigma) * TIMESTEP_SCALING) ** 2
        c_skip = SIGMA_DATA**2 / (scaled_timestep_squared + SIGMA_DATA**2)
        c_out = (scaled_timestep_squared / (scaled_timestep_squared + SIGMA_DATA**2)).sqrt()
        latents = c_skip * latents + c_out * denoise(latents, sigma)
        if sigma_next > 0:
            latents = latents + noise.draw() * sigma_next
        yield latents
