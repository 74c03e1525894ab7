"""DPM-Solver: singlestep methods of up to three calls per step, with fixed or adaptive step sizes.

Lu et al. 2022, "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps". As in
k-diffusion, t is the paper's lambda, -log sigma. These samplers use only the ends of a trajectory, choose their own
levels between them, and yield latents as they pass the trajectory's levels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from velatura.sampling.samplers.euler import to_d
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 0.0078, 0.05  # for latents (appendix C of the paper)
INITIAL_STEP_SIZE, ACCEPT_SAFETY = 0.05, 0.81
END_TOLERANCE = 1e-5  # the end is reached if t is this close to it


class DpmSolverStep:
    """Steps of different orders from one point, which share their calls of the model.

    eps is the predicted noise, as in the paper.
    """

    def __init__(self, denoise: Denoiser, latents: Tensor, t: Tensor) -> None:
        self._denoise = denoise
        self._latents = latents
        self._t = t
        self._eps_cache: dict[float, Tensor] = {}

    @cached_property
    def eps(self) -> Tensor:
        """Return the noise predicted at the start."""
        return self._predict_eps(self._latents, self._t)

    def dpm_solver_1_step(self, t_next: Tensor) -> Tensor:
        """Take a first-order step (equation 3.7)."""
        return self._first_order(t_next)

    def dpm_solver_2_step(self, t_next: Tensor, r1: float = 1 / 2) -> Tensor:
        """Take a second-order step with a second call at the fraction r1 of it (algorithm 4)."""
        h = t_next - self._t
        eps_change = self._eps_at(h, r1) - self.eps
        return self._first_order(t_next) - _first_order_coefficient(t_next, h) / (2 * r1) * eps_change

    def dpm_solver_3_step(self, t_next: Tensor) -> Tensor:
        """Take a third-order step with calls at one third and two thirds of it (algorithm 5)."""
        h = t_next - self._t
        r1, r2 = 1 / 3, 2 / 3
        s2 = self._t + r2 * h
        eps_change = self._eps_at(h, r1) - self.eps
        u2 = self._first_order(s2) - s2.neg().exp() * (r2 / r1) * _second_order_coefficient(r2 * h) * eps_change
        eps_r2 = self._predict_eps(u2, s2)
        return self._first_order(t_next) - t_next.neg().exp() / r2 * _second_order_coefficient(h) * (eps_r2 - self.eps)

    def _first_order(self, t_next: Tensor) -> Tensor:
        return self._latents - _first_order_coefficient(t_next, t_next - self._t) * self.eps

    def _eps_at(self, h: Tensor, r: float) -> Tensor:
        s = self._t + r * h
        if r not in self._eps_cache:
            self._eps_cache[r] = self._predict_eps(self._first_order(s), s)
        return self._eps_cache[r]

    def _predict_eps(self, latents: Tensor, t: Tensor) -> Tensor:
        return to_d(self._denoise, latents, t.neg().exp())


@dataclass
class StepSizeController:
    """Adapts the step size to the difference between a step of lower and one of higher order (appendix C).

    Attributes:
        order: The order that the step size is adapted with.
        h: The size of the next step in t.
        is_accepted: True if the last step was accurate enough.
    """

    order: float
    h: float = INITIAL_STEP_SIZE
    is_accepted: bool = field(default=False, init=False)

    def propose_step(self, error: float) -> None:
        """Accept or reject a step, and adapt the step size.

        Args:
            error: The error of the step; 1 is the tolerance.
        """
        if not math.isfinite(error):  # a shorter step does not help if latents are NaN
            self.is_accepted = True
            return
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / self.order) - 1)
        self.is_accepted = factor >= ACCEPT_SAFETY
        self.h *= factor


def dpm_fast(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take steps of three, two and one call, evenly spaced in t, with as many calls in all as steps (section 3.4)."""
    orders = _orders(trajectory.step_count)
    t_start, t_end = _t_range(trajectory)
    t_steps = torch.linspace(t_start, t_end, len(orders) + 1)
    reporter = StepReporter(trajectory)
    for order, t, t_next in zip(orders, t_steps, t_steps[1:], strict=False):
        t_down, sigma_up = _ancestral_step(trajectory, t, t_next, t_steps[-1])
        solver_step = DpmSolverStep(denoise, latents, t)
        if order == 1:
            latents = solver_step.dpm_solver_1_step(t_down)
        elif order == 2:
            latents = solver_step.dpm_solver_2_step(t_down)
        else:
            latents = solver_step.dpm_solver_3_step(t_down)
        latents = latents + sigma_up * trajectory.settings.churn_noise * noise.draw()
        yield from reporter.steps_until(latents, t_next)
    yield from reporter.remaining_steps(latents)


def dpm_adaptive(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Take third-order steps whose size is adapted by comparing them with second-order steps (appendix C).

    The error is measured over all pictures of a batch together, as in A1111.
    """
    t, t_end = (torch.tensor(end) for end in _t_range(trajectory))
    controller = StepSizeController(1.5 if trajectory.eta else 3.0)
    reporter = StepReporter(trajectory)
    previous_latents = latents
    while t < t_end - END_TOLERANCE:
        t_next = torch.minimum(t_end, t + controller.h)
        t_down, sigma_up = _ancestral_step(trajectory, t, t_next, t_end)
        solver_step = DpmSolverStep(denoise, latents, t)
        low_order, high_order = solver_step.dpm_solver_2_step(t_down, 1 / 3), solver_step.dpm_solver_3_step(t_down)
        magnitude = torch.maximum(low_order.abs(), previous_latents.abs())
        tolerance = (RELATIVE_TOLERANCE * magnitude).clamp(min=ABSOLUTE_TOLERANCE)
        controller.propose_step(float(((low_order - high_order) / tolerance).square().mean().sqrt()))
        if controller.is_accepted:
            previous_latents, t = low_order, t_next
            latents = high_order + sigma_up * trajectory.settings.churn_noise * noise.draw()
            yield from reporter.steps_until(latents, t)
    yield from reporter.remaining_steps(latents)


class StepReporter:
    """Yields latents once for each level of a trajectory that is passed, so that the number of steps stays the same."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._sigmas_left = [float(sigma) for sigma in trajectory.sigmas[1:]]

    def steps_until(self, latents: Tensor, t: Tensor) -> Iterator[Tensor]:
        """Yield the latents once for each level above t that was not reported yet, except the last."""
        while len(self._sigmas_left) > 1 and self._sigmas_left[0] >= float(t.neg().exp()):
            self._sigmas_left.pop(0)
            yield latents

    def remaining_steps(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the latents once for each level that was not reported yet."""
        yield from (latents for _ in self._sigmas_left)


def _orders(calls: int) -> list[int]:
    """Split a number of calls into steps of three, two and one call."""
    full_steps, remainder = divmod(calls, 3)
    if remainder:
        return [3] * full_steps + [remainder]
    return [3] * (full_steps - 1) + [2, 1]


def _t_range(trajectory: Trajectory) -> tuple[float, float]:
    """Return the first level and the cleanest above 0, in t."""
    return -float(trajectory.sigmas[0].log()), -float(trajectory.final_sigma.log())


def _ancestral_step(trajectory: Trajectory, t: Tensor, t_next: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor]:
    """Split an ancestral step.

    Returns:
        t_down, the point to step to, at most t_end, and sigma_up, the noise to add afterwards.
    """
    if not trajectory.eta:
        return t_next, torch.zeros(())
    sigma_next = t_next.neg().exp()
    sigma_down, _ = trajectory.ancestral_step(t.neg().exp(), sigma_next)
    t_down = torch.minimum(t_end, -sigma_down.log())
    return t_down, (sigma_next**2 - t_down.neg().exp() ** 2).clamp(min=0).sqrt()


def _first_order_coefficient(t_next: Tensor, h: Tensor) -> Tensor:
    """Return the coefficient of eps in a first-order step: sigma (e^h - 1)."""
    return t_next.neg().exp() * h.expm1()


def _second_order_coefficient(h: Tensor) -> Tensor:
    """Return the coefficient of the change of eps: (e^h - 1) / h - 1."""
    return h.expm1() / h - 1
