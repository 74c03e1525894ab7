"""DPM-Solver: exponential integrators of up to three calls to a step, of fixed steps or of steps chosen by their error.

Lu et al. 2022, "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps", whose
lambda is t below, -log sigma. Neither steps along the levels of a course: both keep to its
ends, and yield as its levels are passed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from velatura.sampling.samplers.euler import to_d
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

ABSOLUTE_TOLERANCE, RELATIVE_TOLERANCE = 0.0078, 0.05  # tolerances of the paper's appendix C, for latents
INITIAL_STEP_SIZE, ACCEPT_SAFETY = 0.05, 0.81
END_TOLERANCE = 1e-5  # of t, to the end


class DpmSolverStep:
    """Steps from one place, each of whose slopes is asked for once.

    The slope is the noise that is guessed; places are measured in t.
    """

    def __init__(self, denoise: Denoiser, latents: Tensor, t: Tensor) -> None:
        self._denoise = denoise
        self._latents = latents
        self._t = t
        self._eps_cache: dict[float, Tensor] = {}

    @cached_property
    def eps(self) -> Tensor:
        """The slope where the steps start."""
        return self._predict_eps(self._latents, self._t)

    def dpm_solver_1_step(self, t_next: Tensor) -> Tensor:
        """Take a step by one slope (equation 3.7)."""
        return self._first_order(t_next)

    def dpm_solver_2_step(self, t_next: Tensor, r1: float = 1 / 2) -> Tensor:
        """Take a step by a second slope at a share of the way (algorithm 4)."""
        h = t_next - self._t
        eps_change = self._eps_at(h, r1) - self.eps
        return self._first_order(t_next) - _first_order_coefficient(t_next, h) / (2 * r1) * eps_change

    def dpm_solver_3_step(self, t_next: Tensor) -> Tensor:
        """Take a step by slopes at one and two thirds of the way (algorithm 5)."""
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
    """How long the next step may be, from how far a cheap and a dear one ended from each other (appendix C)."""

    order: float
    h: float = INITIAL_STEP_SIZE
    is_accepted: bool = field(default=False, init=False)

    def propose_step(self, error: float) -> None:
        """Take note of the last step's error, 1 being as much as is allowed."""
        if not math.isfinite(error):  # no shorter step helps latents that are no numbers
            self.is_accepted = True
            return
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / self.order) - 1)
        self.is_accepted = factor >= ACCEPT_SAFETY
        self.h *= factor


def dpm_fast(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """As many calls as there are steps, in steps of three, two and one call that are even in t (section 3.4)."""
    orders = _orders(trajectory.step_count)
    t_steps = torch.linspace(*_t_range(trajectory), len(orders) + 1)
    reporter = StepReporter(trajectory)
    for order, t, t_next in zip(orders, t_steps, t_steps[1:], strict=False):
        t_down, sigma_up = _ancestral_step(trajectory, t, t_next, t_steps[-1])
        solver_step = DpmSolverStep(denoise, latents, t)
        latents = (solver_step.dpm_solver_1_step, solver_step.dpm_solver_2_step, solver_step.dpm_solver_3_step)[
            order - 1
        ](t_down)
        latents = latents + sigma_up * trajectory.settings.churn_noise * noise.draw()
        yield from reporter.steps_until(latents, t_next)
    yield from reporter.remaining_steps(latents)


def dpm_adaptive(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, noise: NoiseSource) -> Iterator[Tensor]:
    """Steps of three calls, as long as a step of two calls comes near to them (appendix C).

    The error is measured over all pictures of a batch at once, as the webui has it.
    """
    t_start, t_end = (torch.tensor(t) for t in _t_range(trajectory))
    controller, t, previous_latents, reporter = (
        StepSizeController(1.5 if trajectory.eta else 3.0),
        t_start,
        latents,
        StepReporter(trajectory),
    )
    while t < t_end - END_TOLERANCE:
        t_next = torch.minimum(t_end, t + controller.h)
        t_down, sigma_up = _ancestral_step(trajectory, t, t_next, t_end)
        solver_step = DpmSolverStep(denoise, latents, t)
        low_order, high_order = solver_step.dpm_solver_2_step(t_down, 1 / 3), solver_step.dpm_solver_3_step(t_down)
        tolerance = (RELATIVE_TOLERANCE * torch.maximum(low_order.abs(), previous_latents.abs())).clamp(
            min=ABSOLUTE_TOLERANCE
        )
        controller.propose_step(float(((low_order - high_order) / tolerance).square().mean().sqrt()))
        if controller.is_accepted:
            previous_latents, t = low_order, t_next
            latents = high_order + sigma_up * trajectory.settings.churn_noise * noise.draw()
            yield from reporter.steps_until(latents, t)
    yield from reporter.remaining_steps(latents)


class StepReporter:
    """Yields latents as often as levels of a course are passed, so that a walk of other steps keeps its count."""

    def __init__(self, trajectory: Trajectory) -> None:
        self._sigmas_left = [float(sigma) for sigma in trajectory.sigmas[1:]]

    def steps_until(self, latents: Tensor, t: Tensor) -> Iterator[Tensor]:
        """Yield the latents once for each level from which they have just come, but the last."""
        while len(self._sigmas_left) > 1 and self._sigmas_left[0] >= float(t.neg().exp()):
            self._sigmas_left.pop(0)
            yield latents

    def remaining_steps(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the latents for all levels that are left."""
        yield from (latents for _ in self._sigmas_left)


def _orders(calls: int) -> list[int]:
    """How many calls each step makes, as many as there are in all."""
    full_steps, remainder = divmod(calls, 3)
    if remainder:
        return [3] * full_steps + [remainder]
    return [3] * (full_steps - 1) + [2, 1]


def _t_range(trajectory: Trajectory) -> tuple[float, float]:
    """The first level and the cleanest above 0, in t."""
    return -float(trajectory.sigmas[0].log()), -float(trajectory.final_sigma.log())


def _ancestral_step(trajectory: Trajectory, t: Tensor, t_next: Tensor, t_end: Tensor) -> tuple[Tensor, Tensor]:
    """Where an ancestral step goes down to in t, but not below the end, and the noise that brings it up again."""
    if not trajectory.eta:
        return t_next, torch.zeros(())
    sigma_next = t_next.neg().exp()
    down, _ = trajectory.ancestral_step(t.neg().exp(), sigma_next)
    down = torch.minimum(t_end, -down.log())
    return down, (sigma_next**2 - down.neg().exp() ** 2).clamp(min=0).sqrt()


def _first_order_coefficient(t_next: Tensor, h: Tensor) -> Tensor:
    """What one slope counts in a step: sigma (e^h - 1)."""
    return t_next.neg().exp() * h.expm1()


def _second_order_coefficient(h: Tensor) -> Tensor:
    """What its change counts: (e^h - 1) / h - 1."""
    return h.expm1() / h - 1
