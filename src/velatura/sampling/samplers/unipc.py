"""UniPC: predict the next latents, then correct them by the model's output for them.

Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", algorithms 3
and 4, whose symbols are used here; lambda is -log sigma.
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
    """Predict and correct by the last results, as many as the order allows; the last step is not corrected."""
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
    """Return noise levels from a timestep down to the cleanest.

    Args:
        sigmas: All levels that the model was trained at, the cleanest first.
        start_timestep: The timestep of the first level.
        steps: Number of steps; there is one more level.
        spacing: "time_uniform", "time_quadratic" or "logSNR": even in time, in the root of time, or in lambda.
    """
    if spacing == "logSNR":
        ends = t_to_sigma(sigmas, torch.tensor([start_timestep, 0.0])).log()
        return torch.linspace(float(ends[0]), float(ends[1]), steps + 1).exp()
    power = 2 if spacing == "time_quadratic" else 1
    timestep_count = len(sigmas)
    start_time = (start_timestep + 1) / timestep_count  # the paper's time, from 1 / 1000 to 1
    end_time = (0.0 + 1) / timestep_count
    times = torch.linspace(start_time ** (1 / power), end_time ** (1 / power), steps + 1, dtype=torch.float64) ** power
    return t_to_sigma(sigmas, (times * timestep_count - 1).clamp(0, timestep_count - 1).float())


@dataclass(frozen=True)
class UniPCStep:
    """One step of UniPC.

    Attributes:
        h: Length of the step in lambda.
        sigma_ratio: sigma at the end of the step divided by sigma at its start.
        denoised: The denoised results so far, the newest first.
        ratios: Where the older results were computed, relative to the start and in units of h, then 1 for the end.
        variant: "bh1" or "bh2", the paper's two choices of B(h).
    """

    h: Tensor
    sigma_ratio: Tensor
    denoised: Sequence[Tensor]
    ratios: Tensor
    variant: str

    @classmethod
    def from_lambdas(cls, lambdas: Sequence[Tensor], denoised: Sequence[Tensor], variant: str) -> Self:
        """Build the step to the first lambda from the second; the others are those of older results."""
        lambda_next, lambda_current, *past_lambdas = lambdas
        h = lambda_next - lambda_current
        ratios = torch.stack([*((past_lambda - lambda_current) / h for past_lambda in past_lambdas), torch.ones(())])
        return cls(h, (-h).exp(), denoised, ratios, variant)

    def predict(self, latents: Tensor) -> Tensor:
        """Predict the latents at the end of the step from the results so far."""
        return self._advance(latents, self._differences())

    def correct(self, latents: Tensor, denoised_next: Tensor) -> Tensor:
        """Compute the latents at the end of the step again, with the denoised result for them."""
        return self._advance(latents, [*self._differences(), denoised_next - self.denoised[0]])

    def _advance(self, latents: Tensor, differences: Sequence[Tensor]) -> Tensor:
        """Step by the newest result, corrected by the differences of older ones to it."""
        next_latents = self.sigma_ratio * latents - torch.expm1(-self.h) * self.denoised[0]
        for coefficient, difference in zip(self._coefficients(len(differences)), differences, strict=True):
            next_latents = next_latents - self._b_h * coefficient * difference
        return next_latents

    def _differences(self) -> list[Tensor]:
        """Return D of the paper: differences of older results to the newest, divided by their ratios."""
        newest = self.denoised[0]
        return [(older - newest) / ratio for older, ratio in zip(self.denoised[1:], self.ratios, strict=False)]

    @property
    def _b_h(self) -> Tensor:
        """B(h) of section 3.4 in the paper."""
        return -self.h if self.variant == "bh1" else torch.expm1(-self.h)

    def _coefficients(self, count: int) -> list[float]:
        """Solve equation 5 for the coefficients of the first `count` differences."""
        if count < 2:
            return [0.5] * count
        negative_h = -self.h
        powers = torch.stack([self.ratios[:count] ** power for power in range(count)])
        phi = torch.expm1(negative_h) / negative_h - 1
        sums: list[Tensor] = []
        for power in range(1, count + 1):
            sums.append(phi * math.factorial(power) / self._b_h)
            phi = phi / negative_h - 1 / math.factorial(power + 1)
        return linalg.solve(powers, torch.stack(sums)).tolist()
