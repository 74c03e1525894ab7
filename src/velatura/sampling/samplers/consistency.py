"""Latent consistency models (Luo et al. 2023): each guess is the picture, and fresh noise leads to the next."""

from collections.abc import Iterator

from torch import Tensor

from velatura.sampling.samplers.course import Course, Denoise, Source

STRIDE = 20  # of the thousand timesteps, those that the model was distilled at: 19, 39, ...
DATA_SPREAD, TIME_SCALE = 0.5, 10.0  # sigma_data and the factor of timesteps in the paper's boundary condition


def lcm(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Guess the picture and make it as noisy as the next level is."""
    for here, there in course.strides:
        scaled = (course.timestep(here) * TIME_SCALE) ** 2
        skip = DATA_SPREAD**2 / (scaled + DATA_SPREAD**2)
        out = (scaled / (scaled + DATA_SPREAD**2)).sqrt()
        latents = skip * latents + out * denoise(latents, here)
        if there > 0:
            latents = latents + noise.draw() * there
        yield latents
