"""Restart: go back up to more noise and come down again, with the numbers that the webui took for it.

Xu et al. 2023, "Restart Sampling for Improving Generative Processes", algorithm 1.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from velatura.sampling.samplers.euler import heun_step
from velatura.sampling.samplers.schedules import SigmaRange, karras
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

MIN_STEPS_FOR_RESTART = 20  # that are worth a restart
RESTART_SIGMA_MIN, RESTART_SIGMA_MAX = 0.1, 2.0  # the levels it is made from and back to
TWO_RESTARTS_FROM_STEPS, SINGLE_RESTART_STEPS = (
    36,
    9,
)  # below so many steps there is one restart, of so many steps; else two of a quarter each


def restart(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Heun's steps, a part of which are walked again from fresh noise."""
    last_sigma = trajectory.sigmas[0]
    for sigma, sigma_next in steps_with_restarts(trajectory):
        if sigma > last_sigma:
            latents = latents + noise.draw() * trajectory.settings.churn_noise * (sigma**2 - last_sigma**2).sqrt()
        latents, last_sigma = heun_step(denoise, latents, sigma, sigma_next), sigma_next
        yield latents


def steps_with_restarts(trajectory: Trajectory) -> list[tuple[Tensor, Tensor]]:
    """All steps in their order, those of restarts where they are made; in all as many as the course has."""
    if trajectory.step_count < MIN_STEPS_FOR_RESTART:
        return list(trajectory.steps)
    restart_step_count, restart_count = (
        (SINGLE_RESTART_STEPS, 1)
        if trajectory.step_count < TWO_RESTARTS_FROM_STEPS
        else (trajectory.step_count // 4, 2)
    )
    sigmas = karras(
        SigmaRange(trajectory.model_sigmas, trajectory.final_sigma, trajectory.sigmas[0]),
        trajectory.step_count - restart_step_count * restart_count,
    )
    low_index, high_index = (int((sigmas - level).abs().argmin()) for level in (RESTART_SIGMA_MIN, RESTART_SIGMA_MAX))
    if high_index >= low_index:
        return list(trajectory.steps)
    restart_sigmas = karras(
        SigmaRange(trajectory.model_sigmas, sigmas[low_index], sigmas[high_index]), restart_step_count + 1
    )[:-1]
    return [
        *pairwise(sigmas[: low_index + 1]),
        *list(pairwise(restart_sigmas)) * restart_count,
        *pairwise(sigmas[low_index:]),
    ]
