"""Samplers and noise schedules, equal to those of k-diffusion as A1111 runs them.

Open `table.py` for the list, `sampler.py` and `trajectory.py` for what samplers share, `euler.py` for the simplest.
Latents have noise of standard deviation sigma (Karras et al. 2022, "Elucidating the design space of diffusion-based
generative models", the source of most symbols here).
"""

from velatura.sampling.recipe.sampler_names import SAMPLER_ALIASES
from velatura.sampling.recipe.sampler_settings import SamplerSettings
from velatura.sampling.samplers.sampler import Sampler
from velatura.sampling.samplers.schedules import SCHEDULERS, find_scheduler
from velatura.sampling.samplers.table import SAMPLERS, find_sampler
from velatura.sampling.samplers.trajectory import Denoiser, Trajectory

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
]
