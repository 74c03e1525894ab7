"""Samplers of the stochastic equation, whose noise is the difference of one random path between two levels.

From Lu et al. 2022, "DPM-Solver++", and, with eta, from Karras et al.'s reading of it; t below is -log sigma.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.sampling.samplers.euler import to_d
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

MIDPOINT_FRACTION = 0.5  # of a step, where its second call is made


def dpmpp_2s_ancestral(
    denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource
) -> Iterator[Tensor]:
    """Two calls to a step below the next level (DPM-Solver++, algorithm 1), then fresh noise up to it."""
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
    """Two calls to a step, each of which goes below its level and gets noise up to it."""
    noise_sampler, s_noise = (
        noise.brownian_noise_sampler(trajectory.sigma_min, trajectory.sigma_max),
        trajectory.settings.churn_noise,
    )
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
    """Extrapolate from the last two guesses to the middle of each step (DPM-Solver++, SDE-DPM-Solver++(2M))."""
    return _sample_multistep(_midpoint_correction, denoise, latents, trajectory, noise)


def dpmpp_2m_sde_heun(
    denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource
) -> Iterator[Tensor]:
    """Extrapolate from the last two guesses through each step."""
    return _sample_multistep(_heun_correction, denoise, latents, trajectory, noise)


def dpmpp_3m_sde(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Extrapolate from the last three guesses through each step."""
    return _sample_multistep(_third_order_correction, denoise, latents, trajectory, noise)


def first_order_step(denoised: Tensor, latents: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """Latents brought to another level as if the guess were right (DPM-Solver++, equation 8 of the first order)."""
    ratio = sigma_next / sigma
    return ratio * latents + (1 - ratio) * denoised


@dataclass(frozen=True)
class _MultistepHistory:
    """The guesses of a walk and how long its steps were in t, the newest first; whole: the newest, times 1 + eta."""

    denoised: Sequence[Tensor]
    step_sizes: Sequence[Tensor]
    h_eta: Tensor

    @property
    def denoised_weight(self) -> Tensor:
        """How much of the guess a step takes over."""
        return -torch.expm1(-self.h_eta)

    @property
    def phi_2(self) -> Tensor:
        """What the guess's change over a step counts in it (phi_2 of exponential integrators)."""
        return 1 - self.denoised_weight / self.h_eta

    def denoised_change(self, steps_back: int) -> Tensor:
        """The change of the guess over a step as long as the newest, as it was so many steps back."""
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
    """Walk with one call to a step; bend: what older guesses add to a step by the newest alone."""
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
    """The parabola through three guesses, once there are three, else the line through two."""
    if len(history.step_sizes) < 3:
        return _heun_correction(history)
    r0, r1 = history.step_sizes[1] / history.step_sizes[0], history.step_sizes[2] / history.step_sizes[0]
    d1_0, d1_1 = history.denoised_change(0), history.denoised_change(1)
    d2 = (d1_0 - d1_1) / (r0 + r1)
    return history.phi_2 * (d1_0 + d2 * r0) - (history.phi_2 / history.h_eta - 0.5) * d2
