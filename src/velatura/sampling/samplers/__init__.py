"""The ways from noise to a picture, each exact to k-diffusion's as the AUTOMATIC1111 webui runs it.

All walk in one space: latents whose noise has the standard deviation sigma (Karras et al. 2022, "Elucidating the design
space of diffusion-based generative models", the paper of most letters in this folder).
"""

from velatura.sampling.samplers.course import Denoiser, Trajectory
from velatura.sampling.samplers.sampler import Sampler
from velatura.sampling.samplers.table import SAMPLER_ALIASES, SAMPLERS, find_sampler
from velatura.sampling.schedules import SCHEDULERS, find_scheduler, sigma_to_timestep
from velatura.sampling.settings import SamplerSettings

__all__ = [
    "SAMPLERS",
    "SAMPLER_ALIASES",
    "SCHEDULERS",
    "Denoiser",
    "Sampler",
    "SamplerSettings",
    "Trajectory",
    "find_sampler",
    "find_scheduler",
    "sigma_to_timestep",
]
