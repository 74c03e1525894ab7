"""The sampler of latent consistency models (LCM).

Luo et al. 2023, "Latent Consistency Models". Their output at any noise level is the clean picture, so that each step
adds new noise to it and starts again from the lower level.
"""

from collections.abc import Iterator

from torch import Tensor

from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

LCM_TIMESTEP_INTERVAL = 20  # the model was distilled at every 20th of the thousand timesteps: 19, 39, ...
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # constants of the paper's boundary condition


def lcm(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Estimate the clean picture, then add new noise up to the next level.

    The new noise comes from the seeds of the pictures, and is added after every step but the last.
    """
    for sigma, sigma_next in trajectory.steps:
        c_skip, c_out = boundary_coefficients(trajectory.timestep(sigma))
        latents = c_skip * latents + c_out * denoise(latents, sigma)
        if sigma_next > 0:
            latents = latents + noise.draw() * sigma_next
        yield latents


def boundary_coefficients(timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Return c_skip and c_out, by which the latents and the model's output count.

    At timestep 0 they are 1 and 0, so that clean latents stay as they are (the paper's boundary condition, section 3).

    Args:
        timestep: The timestep of the model's call, 0-d.
    """
    scaled_timestep_squared = (timestep * TIMESTEP_SCALING) ** 2
    c_skip = SIGMA_DATA**2 / (scaled_timestep_squared + SIGMA_DATA**2)
    c_out = (scaled_timestep_squared / (scaled_timestep_squared + SIGMA_DATA**2)).sqrt()
    return c_skip, c_out
