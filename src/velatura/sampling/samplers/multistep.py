"""Samplers that look back on their earlier guesses, one call of the model to a step."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from velatura.sampling.samplers.euler import to_d
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

# How much the newest and the older slopes count (Liu et al. 2022, "Pseudo Numerical Methods", equation 12)
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def dpmpp_2m(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, _noise: NoiseSource) -> Iterator[Tensor]:
    """Extrapolate from the last two guesses (Lu et al. 2022, "DPM-Solver++", algorithm 2)."""
    old_denoised, h_last = None, None
    for sigma, sigma_next in trajectory.steps:
        denoised = denoise(latents, sigma)
        h = sigma.log() - sigma_next.log()  # of lambda, the logarithm of the signal's share; infinite at the end
        if old_denoised is None or h_last is None or sigma_next == 0:
            denoised_d = denoised
        else:
            r = h_last / h
            denoised_d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old_denoised
        latents = sigma_next / sigma * latents - torch.expm1(-h) * denoised_d
        old_denoised, h_last = denoised, h
        yield latents


def plms(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, _noise: NoiseSource) -> Iterator[Tensor]:
    """Adams-Bashforth in DDIM's terms (Liu et al. 2022); the first step is taken twice, for the mean of its slopes."""
    derivatives: deque[Tensor] = deque(maxlen=len(ADAMS_BASHFORTH))  # the newest first
    for sigma, sigma_next in trajectory.steps:
        derivatives.appendleft(to_d(denoise, latents, sigma))
        if len(derivatives) == 1:
            next_latents = latents + derivatives[0] * (sigma_next - sigma)
            derivative = (derivatives[0] + to_d(denoise, next_latents, sigma_next)) / 2
        else:
            derivative = sum(
                (
                    coefficient * d
                    for coefficient, d in zip(ADAMS_BASHFORTH[len(derivatives) - 1], derivatives, strict=True)
                ),
                latents * 0,
            )
        latents = latents + derivative * (sigma_next - sigma)
        yield latents
