"""Samplers that follow the derivative dx / dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, eq. 1)."""

import math
from collections.abc import Iterator

from torch import Tensor

from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory


def euler(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take Euler steps (Karras et al., algorithm 2 without its second-order correction)."""
    for sigma, sigma_next in trajectory.steps:
        latents, sigma_hat = churn(latents, sigma, trajectory, noise)
        latents = latents + to_d(denoise, latents, sigma_hat) * (sigma_next - sigma_hat)
        yield latents


def euler_ancestral(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take Euler steps to sigma_down, below the next level, then add new noise up to it."""
    for sigma, sigma_next in trajectory.steps:
        sigma_down, sigma_up = trajectory.ancestral_step(sigma, sigma_next)
        latents = latents + to_d(denoise, latents, sigma) * (sigma_down - sigma)
        latents = add_noise(latents, sigma_next, sigma_up, trajectory, noise)
        yield latents


def heun(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take steps by the mean of the derivatives at both ends (Karras et al., algorithm 2)."""
    for sigma, sigma_next in trajectory.steps:
        latents, sigma_hat = churn(latents, sigma, trajectory, noise)
        latents = heun_step(denoise, latents, sigma_hat, sigma_next)
        yield latents


def dpm2(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take steps by the derivative in their middle (Lu et al. 2022, "DPM-Solver", algorithm 1, in Karras' symbols)."""
    for sigma, sigma_next in trajectory.steps:
        latents, sigma_hat = churn(latents, sigma, trajectory, noise)
        latents = midpoint_step(denoise, latents, sigma_hat, sigma_next)
        yield latents


def dpm2_ancestral(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take midpoint steps to sigma_down, below the next level, then add new noise up to it."""
    for sigma, sigma_next in trajectory.steps:
        sigma_down, sigma_up = trajectory.ancestral_step(sigma, sigma_next)
        latents = midpoint_step(denoise, latents, sigma, sigma_down)
        latents = add_noise(latents, sigma_next, sigma_up, trajectory, noise)
        yield latents


def to_d(denoise: Denoiser, latents: Tensor, sigma: Tensor) -> Tensor:
    """Return the derivative of the latents with respect to sigma, which is also the noise that is predicted in them."""
    return (latents - denoise(latents, sigma)) / sigma


def heun_step(denoise: Denoiser, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Take one Heun step, or an Euler step if it ends at sigma 0."""
    d = to_d(denoise, latents, sigma)
    next_latents = latents + d * (sigma_next - sigma)
    if sigma_next == 0:
        return next_latents
    return latents + (d + to_d(denoise, next_latents, sigma_next)) / 2 * (sigma_next - sigma)


def midpoint_step(denoise: Denoiser, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Take one step by the derivative half way in log sigma, or an Euler step if it ends at sigma 0."""
    d = to_d(denoise, latents, sigma)
    if sigma_next == 0:
        return latents + d * (sigma_next - sigma)
    sigma_mid = sigma.log().lerp(sigma_next.log(), 0.5).exp()
    return latents + to_d(denoise, latents + d * (sigma_mid - sigma), sigma_mid) * (sigma_next - sigma)


def churn(latents: Tensor, sigma: Tensor, trajectory: Trajectory, noise: NoiseSource) -> tuple[Tensor, Tensor]:
    """Add a little noise before a step (Karras et al., algorithm 2, lines 4 to 6).

    Returns:
        The noisier latents, and their noise level sigma_hat.
    """
    settings = trajectory.settings
    if not settings.churn:
        return latents, sigma
    is_in_range = settings.churn_from <= sigma <= (settings.churn_to or math.inf)
    gamma = min(settings.churn / trajectory.step_count, math.sqrt(2) - 1) if is_in_range else 0.0
    eps, sigma_hat = noise.draw() * settings.churn_noise, sigma * (gamma + 1)  # A1111 draws even where gamma is 0
    return latents + eps * (sigma_hat**2 - sigma**2).sqrt(), sigma_hat


def add_noise(
    latents: Tensor, sigma_next: Tensor, sigma_up: Tensor, trajectory: Trajectory, noise: NoiseSource
) -> Tensor:
    """Add new noise of standard deviation sigma_up, unless the step ends at sigma 0."""
    if sigma_next == 0:
        return latents
    return latents + noise.draw() * trajectory.settings.churn_noise * sigma_up
