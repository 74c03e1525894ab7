"""The Restart sampler: go back up to a higher noise level and denoise again, with the constants of A1111.

Xu et al. 2023, "Restart Sampling for Improving Generative Processes", algorithm 1.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from velatura.sampling.samplers.euler import heun_step
from velatura.sampling.samplers.schedules import SigmaRange, karras
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

MIN_STEPS_FOR_RESTART = 20  # with fewer steps the sampler does not restart
RESTART_SIGMA_MIN, RESTART_SIGMA_MAX = 0.1, 2.0  # a restart goes from the first level up to the second
SINGLE_RESTART_STEPS = 9  # steps of the one restart
TWO_RESTARTS_FROM_STEPS = 36  # from so many steps on there are two restarts, each of a quarter of the steps


def restart(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take Heun steps, and repeat some of them from new noise."""
    last_sigma = trajectory.sigmas[0]
    for sigma, sigma_next in steps_with_restarts(trajectory):
        if sigma > last_sigma:
            latents = latents + noise.draw() * trajectory.settings.churn_noise * (sigma**2 - last_sigma**2).sqrt()
        latents, last_sigma = heun_step(denoise, latents, sigma, sigma_next), sigma_next
        yield latents


def steps_with_restarts(trajectory: Trajectory) -> list[tuple[Tensor, Tensor]]:
    """Return all steps in their order, with restarts; together they are as many as the trajectory has."""
    if trajectory.step_count < MIN_STEPS_FOR_RESTART:
        return list(trajectory.steps)
    restart_step_count, restart_count = SINGLE_RESTART_STEPS, 1
    if trajectory.step_count >= TWO_RESTARTS_FROM_STEPS:
        restart_step_count, restart_count = trajectory.step_count // 4, 2
    sigmas = karras(
        SigmaRange(trajectory.model_sigmas, trajectory.final_sigma, trajectory.sigmas[0]),
        trajectory.step_count - restart_step_count * restart_count,
    )
    low_index = int((sigmas - RESTART_SIGMA_MIN).abs().argmin())
    high_index = int((sigmas - RESTART_SIGMA_MAX).abs().argmin())
    if high_index >= low_index:
        return list(trajectory.steps)
    restart_range = SigmaRange(trajectory.model_sigmas, sigmas[low_index], sigmas[high_index])
    restart_sigmas = karras(restart_range, restart_step_count + 1)[:-1]
    return [
        *pairwise(sigmas[: low_index + 1]),
        *list(pairwise(restart_sigmas)) * restart_count,
        *pairwise(sigmas[low_index:]),
    ]
