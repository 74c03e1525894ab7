"""Samplers of the stochastic differential equation (SDE), and DPM++ 2S a.

From Lu et al. 2022, "DPM-Solver++", with eta as in k-diffusion. The SDE samplers draw their noise from a Brownian path;
lambda is -log sigma.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.sampling.samplers.euler import to_d
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

MIDPOINT_FRACTION = 0.5  # where in a step the second call is made (r in the paper)


def dpmpp_2s_ancestral(
    denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource
) -> Iterator[Tensor]:
    """Take second-order steps to sigma_down (DPM-Solver++, algorithm 1), then add new noise up to the next level."""
    for sigma, sigma_next in trajectory.steps:
        sigma_down, sigma_up = trajectory.ancestral_step(sigma, sigma_next)
        if sigma_down == 0:
            latents = latents + to_d(denoise, latents, sigma) * (sigma_down - sigma)
        else:
            sigma_mid = sigma.log().lerp(sigma_down.log(), MIDPOINT_FRACTION).exp()
            midpoint_latents = first_order_step(denoise(latents, sigma), latents, sigma, sigma_mid)
            latents = first_order_step(denoise(midpoint_latents, sigma_mid), latents, sigma, sigma_down)
        if sigma_next > 0:
            latents = latents + noise.draw() * trajectory.settings.churn_noise * sigma_up
        yield latents


def dpmpp_sde(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take steps of two calls (SDE-DPM-Solver++(2S)), the midpoint with noise of its own."""
    noise_sampler = noise.brownian_noise_sampler(trajectory.sigma_min, trajectory.sigma_max)
    s_noise = trajectory.settings.churn_noise
    for sigma, sigma_next in trajectory.steps:
        denoised = denoise(latents, sigma)
        if sigma_next == 0:
            latents = latents + (latents - denoised) / sigma * (sigma_next - sigma)
        else:
            sigma_mid = sigma.log().lerp(sigma_next.log(), MIDPOINT_FRACTION).exp()
            sigma_down, sigma_up = trajectory.ancestral_step(sigma, sigma_mid)
            midpoint_latents = (
                first_order_step(denoised, latents, sigma, sigma_down)
                + noise_sampler(sigma, sigma_mid) * s_noise * sigma_up
            )
            denoised_2 = denoise(midpoint_latents, sigma_mid)
            sigma_down, sigma_up = trajectory.ancestral_step(sigma, sigma_next)
            denoised_d = denoised.lerp(denoised_2, 1 / (2 * MIDPOINT_FRACTION))
            latents = (
                first_order_step(denoised_d, latents, sigma, sigma_down)
                + noise_sampler(sigma, sigma_next) * s_noise * sigma_up
            )
        yield latents


def dpmpp_2m_sde(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Extrapolate from the last two results, with the midpoint rule (SDE-DPM-Solver++(2M))."""
    return _sample_multistep(_midpoint_correction, denoise, latents, trajectory, noise)


def dpmpp_2m_sde_heun(
    denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource
) -> Iterator[Tensor]:
    """Extrapolate from the last two results, with Heun's rule."""
    return _sample_multistep(_heun_correction, denoise, latents, trajectory, noise)


def dpmpp_3m_sde(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Extrapolate from the last three results."""
    return _sample_multistep(_third_order_correction, denoise, latents, trajectory, noise)


def first_order_step(denoised: Tensor, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Move latents to another noise level along a denoised result (DPM-Solver++, equation 8, first order)."""
    ratio = sigma_next / sigma
    return ratio * latents + (1 - ratio) * denoised


@dataclass(frozen=True)
class _MultistepHistory:
    """Results and steps so far, the newest first.

    Attributes:
        denoised: Denoised results.
        step_sizes: Step sizes in lambda, h in the paper.
        h_eta: The newest step size times 1 + eta.
    """

    denoised: Sequence[Tensor]
    step_sizes: Sequence[Tensor]
    h_eta: Tensor

    @property
    def denoised_weight(self) -> Tensor:
        """Return how much the newest denoised result counts in the step."""
        return -torch.expm1(-self.h_eta)

    @property
    def phi_2(self) -> Tensor:
        """Return how much the change of the result over the step counts (phi_2 of exponential integrators)."""
        return 1 - self.denoised_weight / self.h_eta

    def denoised_change(self, steps_back: int) -> Tensor:
        """Return the change of the result, as it was so many steps ago, scaled to the newest step size."""
        return (
            (self.denoised[steps_back] - self.denoised[steps_back + 1])
            * self.step_sizes[0]
            / self.step_sizes[steps_back + 1]
        )


def _sample_multistep(
    correction: Callable[[_MultistepHistory], Tensor],
    denoise: Denoiser,
    latents: Tensor,
    trajectory: Trajectory,
    noise: NoiseSource,
) -> Iterator[Tensor]:
    """Take steps of one call; `correction` computes what older results add to a first-order step."""
    noise_sampler = noise.brownian_noise_sampler(trajectory.sigma_min, trajectory.sigma_max)
    denoised: deque[Tensor] = deque(maxlen=3)
    step_sizes: deque[Tensor] = deque(maxlen=3)
    for sigma, sigma_next in trajectory.steps:
        denoised.appendleft(denoise(latents, sigma))
        if sigma_next == 0:
            latents = denoised[0]
        else:
            step_sizes.appendleft(sigma.log() - sigma_next.log())
            history = _MultistepHistory(denoised, step_sizes, step_sizes[0] * (1 + trajectory.eta))
            noise_std = (
                sigma_next
                * (-torch.expm1(-2 * trajectory.eta * step_sizes[0])).sqrt()
                * trajectory.settings.churn_noise
            )
            latents = torch.exp(-history.h_eta) * latents + history.denoised_weight * denoised[0]
            if len(step_sizes) > 1:
                latents = latents + correction(history)
            latents = latents + noise_sampler(sigma, sigma_next) * noise_std
        yield latents


def _midpoint_correction(history: _MultistepHistory) -> Tensor:
    return history.denoised_weight / 2 * history.denoised_change(0)


def _heun_correction(history: _MultistepHistory) -> Tensor:
    return history.phi_2 * history.denoised_change(0)


def _third_order_correction(history: _MultistepHistory) -> Tensor:
    """Use the parabola through three results once there are three, else the line through two."""
    if len(history.step_sizes) < 3:
        return _heun_correction(history)
    r0, r1 = history.step_sizes[1] / history.step_sizes[0], history.step_sizes[2] / history.step_sizes[0]
    d1_0, d1_1 = history.denoised_change(0), history.denoised_change(1)
    d2 = (d1_0 - d1_1) / (r0 + r1)
    return history.phi_2 * (d1_0 + d2 * r0) - (history.phi_2 / history.h_eta - 0.5) * d2
