"""Multistep samplers: one call of the model per step, combined with the results of earlier steps."""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from velatura.sampling.samplers.euler import to_d
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

LMS_ORDER = 4  # number of derivatives that LMS uses

# Coefficients of the derivatives, the newest first (Liu et al. 2022, "Pseudo Numerical Methods", equation 12)
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def dpmpp_2m(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, _noise: NoiseSource) -> Iterator[Tensor]:
    """Extrapolate from the last two denoised results (Lu et al. 2022, "DPM-Solver++", algorithm 2)."""
    old_denoised, h_last = None, None
    for sigma, sigma_next in trajectory.steps:
        denoised = denoise(latents, sigma)
        h = sigma.log() - sigma_next.log()  # step size in lambda = -log sigma; infinite at the end
        if old_denoised is None or h_last is None or sigma_next == 0:
            denoised_d = denoised
        else:
            r = h_last / h
            denoised_d = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * old_denoised
        latents = sigma_next / sigma * latents - torch.expm1(-h) * denoised_d
        old_denoised, h_last = denoised, h
        yield latents


def plms(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, _noise: NoiseSource) -> Iterator[Tensor]:
    """Take Adams-Bashforth steps of order 4 (Liu et al. 2022); the first step is a Heun step, with two calls."""
    derivatives: deque[Tensor] = deque(maxlen=len(ADAMS_BASHFORTH))  # the newest first
    for sigma, sigma_next in trajectory.steps:
        derivatives.appendleft(to_d(denoise, latents, sigma))
        if len(derivatives) == 1:
            next_latents = latents + derivatives[0] * (sigma_next - sigma)
            derivative = (derivatives[0] + to_d(denoise, next_latents, sigma_next)) / 2
        else:
            coefficients = ADAMS_BASHFORTH[len(derivatives) - 1]
            terms = (coefficient * d for coefficient, d in zip(coefficients, derivatives, strict=True))
            derivative = sum(terms, latents * 0)
        latents = latents + derivative * (sigma_next - sigma)
        yield latents


def lms(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, _noise: NoiseSource) -> Iterator[Tensor]:
    """Integrate the polynomial through the last four derivatives (Adams-Bashforth with unequal steps)."""
    sigmas = [float(sigma) for sigma in trajectory.sigmas]
    derivatives: deque[Tensor] = deque(maxlen=LMS_ORDER)  # the newest first
    for step in range(trajectory.step_count):
        derivatives.appendleft(to_d(denoise, latents, trajectory.sigmas[step]))
        coefficients = adams_bashforth(sigmas[max(step - LMS_ORDER + 1, 0) : step + 2])
        latents = latents + sum(coefficient * d for coefficient, d in zip(coefficients, derivatives, strict=True))
        yield latents


def adams_bashforth(sigmas: Sequence[float]) -> list[float]:
    """Compute by how much each derivative counts in a step: the integral of its Lagrange polynomial.

    Args:
        sigmas: The levels at which the derivatives were computed, the newest last, then the level where the step ends.

    Returns:
        One coefficient per derivative, that of the newest first.
    """
    *past_sigmas, sigma_next = sigmas
    coefficients: list[float] = []
    for sigma in reversed(past_sigmas):
        others = [other for other in past_sigmas if other != sigma]
        lagrange = np.poly1d(others, r=True) / math.prod(sigma - other for other in others)
        integral = lagrange.integ()
        coefficients.append(float(integral(sigma_next) - integral(past_sigmas[-1])))
    return coefficients
