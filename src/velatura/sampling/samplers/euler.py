"""Samplers that follow the slope dx / dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, equation 1)."""

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

LMS_ORDER = 4  # slopes that LMS looks back on


def euler(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Follow the slope at each level to the next (Karras et al., algorithm 2 without its correction)."""
    for sigma, sigma_next in trajectory.steps:
        latents, sigma_hat = churn(latents, sigma, trajectory, noise)
        latents = latents + to_d(denoise, latents, sigma_hat) * (sigma_next - sigma_hat)
        yield latents


def euler_ancestral(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Step below the next level, then add fresh noise up to it."""
    for sigma, sigma_next in trajectory.steps:
        sigma_down, sigma_up = trajectory.ancestral_step(sigma, sigma_next)
        latents = latents + to_d(denoise, latents, sigma) * (sigma_down - sigma)
        yield (latents := add_noise(latents, sigma_next, sigma_up, trajectory, noise))


def heun(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take each step with the mean of the slopes at both its ends (Karras et al., algorithm 2)."""
    for sigma, sigma_next in trajectory.steps:
        latents, sigma_hat = churn(latents, sigma, trajectory, noise)
        yield (latents := heun_step(denoise, latents, sigma_hat, sigma_next))


def dpm2(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take each step with the slope in its middle (Lu et al. 2022, "DPM-Solver", algorithm 1, in Karras' terms)."""
    for sigma, sigma_next in trajectory.steps:
        latents, sigma_hat = churn(latents, sigma, trajectory, noise)
        yield (latents := midpoint_step(denoise, latents, sigma_hat, sigma_next))


def dpm2_ancestral(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Step below the next level by the slope in the middle, then add fresh noise up to it."""
    for sigma, sigma_next in trajectory.steps:
        sigma_down, sigma_up = trajectory.ancestral_step(sigma, sigma_next)
        latents = midpoint_step(denoise, latents, sigma, sigma_down)
        yield (latents := add_noise(latents, sigma_next, sigma_up, trajectory, noise))


def lms(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, _noise: NoiseSource) -> Iterator[Tensor]:
    """Integrate the polynomial through the last four slopes (Adams-Bashforth with unequal steps)."""
    sigmas = [float(sigma) for sigma in trajectory.sigmas]
    derivatives: deque[Tensor] = deque(maxlen=LMS_ORDER)  # the newest first
    for step in range(trajectory.step_count):
        derivatives.appendleft(to_d(denoise, latents, trajectory.sigmas[step]))
        coefficients = adams_bashforth(sigmas[max(step - LMS_ORDER + 1, 0) : step + 2])
        latents = latents + sum(coefficient * d for coefficient, d in zip(coefficients, derivatives, strict=True))
        yield latents


def to_d(denoise: Denoiser, latents: Tensor, sigma: Tensor) -> Tensor:
    """Where the latents are drawn, per unit of sigma; it is also the noise that is guessed to be in them."""
    return (latents - denoise(latents, sigma)) / sigma


def heun_step(denoise: Denoiser, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step by the mean of two slopes, or by the first where no noise is left at its end."""
    d = to_d(denoise, latents, sigma)
    next_latents = latents + d * (sigma_next - sigma)
    if sigma_next == 0:
        return next_latents
    return latents + (d + to_d(denoise, next_latents, sigma_next)) / 2 * (sigma_next - sigma)


def midpoint_step(denoise: Denoiser, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One step by the slope half way in the logarithm of sigma, or by the first where no noise is left at its end."""
    d = to_d(denoise, latents, sigma)
    if sigma_next == 0:
        return latents + d * (sigma_next - sigma)
    sigma_mid = sigma.log().lerp(sigma_next.log(), 0.5).exp()
    return latents + to_d(denoise, latents + d * (sigma_mid - sigma), sigma_mid) * (sigma_next - sigma)


def churn(latents: Tensor, sigma: Tensor, trajectory: Trajectory, noise: NoiseSource) -> tuple[Tensor, Tensor]:
    """The latents with a little fresh noise, and the level that this brings them up to (Karras et al., algorithm 2)."""
    settings = trajectory.settings
    is_in_range = settings.churn_from <= sigma <= (settings.churn_to or math.inf)
    gamma = min(settings.churn / trajectory.step_count, math.sqrt(2) - 1) if is_in_range else 0.0
    if not settings.churn:
        return latents, sigma
    eps, sigma_hat = noise.draw() * settings.churn_noise, sigma * (gamma + 1)  # drawn in any case, as A1111 does
    return latents + eps * (sigma_hat**2 - sigma**2).sqrt(), sigma_hat


def add_noise(
    latents: Tensor, sigma_next: Tensor, sigma_up: Tensor, trajectory: Trajectory, noise: NoiseSource
) -> Tensor:
    """The latents with fresh noise, unless the walk ends here."""
    if sigma_next == 0:
        return latents
    return latents + noise.draw() * trajectory.settings.churn_noise * sigma_up


def adams_bashforth(sigmas: list[float]) -> list[float]:
    """How much each slope counts, the newest first; sigmas: where they were taken, then where the step ends."""
    *past_sigmas, sigma_next = sigmas
    coefficients: list[float] = []
    for sigma in reversed(past_sigmas):
        others = [other for other in past_sigmas if other != sigma]
        lagrange = np.poly1d(others, r=True) / math.prod(sigma - other for other in others)
        integral = lagrange.integ()
        coefficients.append(float(integral(sigma_next) - integral(past_sigmas[-1])))
    return coefficients
