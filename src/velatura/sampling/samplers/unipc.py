"""UniPC: predict the next latents, then correct them by the guess that is made there anyway.

Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", algorithms 3
and 4, of which the letters are; t below is -log sigma, its lambda.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from velatura.sampling.samplers.schedules import t_to_sigma
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, Trajectory

linalg: Any = torch.linalg  # which has no types


def unipc(denoise: Denoiser, latents: Tensor, trajectory: Trajectory, _noise: NoiseSource) -> Iterator[Tensor]:
    """Predict and correct with as many guesses as there are, up to the order; the last step is not corrected."""
    settings, sigmas = trajectory.settings, trajectory.sigmas
    denoised: deque[Tensor] = deque([denoise(latents, sigmas[0])], maxlen=settings.unipc_order)  # the newest first
    for step in range(trajectory.step_count):
        remaining = trajectory.step_count - step
        order = min(len(denoised), remaining) if settings.unipc_lower_order_final else len(denoised)
        lambdas = [sigmas[index].log().neg() for index in range(step + 1, step - order, -1)]
        unipc_step = UniPCStep.from_lambdas(lambdas, list(denoised)[:order], settings.unipc_variant)
        next_latents = unipc_step.predict(latents)
        if remaining > 1:
            denoised_next = denoise(next_latents, sigmas[step + 1])
            next_latents = unipc_step.correct(latents, denoised_next)
            denoised.appendleft(denoised_next)
        latents = next_latents
        yield latents


def unipc_sigmas(sigmas: Tensor, start_timestep: float, steps: int, spacing: str) -> Tensor:
    """The levels from a timestep down to the cleanest, even in time, in the root of time, or in t."""
    if spacing == "logSNR":
        ends = t_to_sigma(sigmas, torch.tensor([start_timestep, 0.0])).log()
        return torch.linspace(float(ends[0]), float(ends[1]), steps + 1).exp()
    power = 2 if spacing == "time_quadratic" else 1
    timestep_count = len(sigmas)
    starts, ends = (
        (timestep + 1) / timestep_count for timestep in (start_timestep, 0.0)
    )  # the paper's time, from 1 / 1000 to 1
    times = torch.linspace(starts ** (1 / power), ends ** (1 / power), steps + 1, dtype=torch.float64) ** power
    return t_to_sigma(sigmas, (times * timestep_count - 1).clamp(0, timestep_count - 1).float())


@dataclass(frozen=True)
class UniPCStep:
    """One step: how long it is in t, sigma at both its ends, and the guesses that it looks back on, the newest first.

    ratios: where the older guesses were made, in steps of this length, then 1 for its own end.
    """

    h: Tensor
    sigma_ratio: Tensor
    denoised: Sequence[Tensor]
    ratios: Tensor
    variant: str

    @classmethod
    def from_lambdas(cls, lambdas: Sequence[Tensor], denoised: Sequence[Tensor], variant: str) -> Self:
        """The step to the first of these places from the second, the others having been passed before."""
        lambda_next, lambda_current, *past_lambdas = lambdas
        h = lambda_next - lambda_current
        ratios = torch.stack([*((past_lambda - lambda_current) / h for past_lambda in past_lambdas), torch.ones(())])
        return cls(h, (-h).exp(), denoised, ratios, variant)

    def predict(self, latents: Tensor) -> Tensor:
        """The latents at its end, from the guesses so far."""
        return self._advance(latents, self._differences())

    def correct(self, latents: Tensor, denoised_next: Tensor) -> Tensor:
        """The latents at its end, now that there is a guess."""
        return self._advance(latents, [*self._differences(), denoised_next - self.denoised[0]])

    def _advance(self, latents: Tensor, differences: Sequence[Tensor]) -> Tensor:
        """The latents brought along by the newest guess, bent by its changes."""
        next_latents = self.sigma_ratio * latents - torch.expm1(-self.h) * self.denoised[0]
        for coefficient, difference in zip(self._coefficients(len(differences)), differences, strict=True):
            next_latents = next_latents - self._b_h * coefficient * difference
        return next_latents

    def _differences(self) -> list[Tensor]:
        """D of the paper: how the guess changed from each older one to the newest, per step of this length."""
        newest = self.denoised[0]
        return [(older - newest) / ratio for older, ratio in zip(self.denoised[1:], self.ratios, strict=False)]

    @property
    def _b_h(self) -> Tensor:
        """B(h) of the paper's section 3.4."""
        return -self.h if self.variant == "bh1" else torch.expm1(-self.h)

    def _coefficients(self, count: int) -> list[float]:
        """How much each change counts: the solution of equation 5 for the first so many ratios."""
        if count < 2:
            return [0.5] * count
        negative_h = -self.h
        powers = torch.stack([self.ratios[:count] ** power for power in range(count)])
        phi, sums = torch.expm1(negative_h) / negative_h - 1, list[Tensor]()
        for power in range(1, count + 1):
            sums.append(phi * math.factorial(power) / self._b_h)
            phi = phi / negative_h - 1 / math.factorial(power + 1)
        return linalg.solve(powers, torch.stack(sums)).tolist()
