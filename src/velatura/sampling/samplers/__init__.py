"""The ways from noise to a picture, each exact to k-diffusion's as the AUTOMATIC1111 webui runs it.

All walk in one space: latents whose noise has the standard deviation sigma (Karras et al. 2022, "Elucidating the design
space of diffusion-based generative models", the paper of most letters in this folder).
"""

from velatura.sampling.samplers.course import Course, Denoise
from velatura.sampling.samplers.sampler import Sampler
from velatura.sampling.samplers.table import ALIASES, SAMPLERS, find_sampler
from velatura.sampling.schedules import SCHEDULERS, find_scheduler, timestep_of
from velatura.sampling.settings import Settings

__all__ = [
    "ALIASES",
    "SAMPLERS",
    "SCHEDULERS",
    "Course",
    "Denoise",
    "Sampler",
    "Settings",
    "find_sampler",
    "find_scheduler",
    "timestep_of",
]
