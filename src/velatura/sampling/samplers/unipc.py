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

from velatura.sampling.samplers.course import Course, Denoise, Source
from velatura.sampling.schedules import sigma_at

linalg: Any = torch.linalg  # which has no types


def unipc(denoise: Denoise, latents: Tensor, course: Course, _noise: Source) -> Iterator[Tensor]:
    """Predict and correct with as many guesses as there are, up to the order; the last step is not corrected."""
    settings, sigmas = course.settings, course.sigmas
    guesses: deque[Tensor] = deque([denoise(latents, sigmas[0])], maxlen=settings.unipc_order)  # the newest first
    for step in range(course.steps):
        left = course.steps - step
        order = min(len(guesses), left) if settings.unipc_lower_order_final else len(guesses)
        places = [sigmas[place].log().neg() for place in range(step + 1, step - order, -1)]
        stride = Stride.along(places, list(guesses)[:order], settings.unipc_variant)
        ahead = stride.predicted(latents)
        if left > 1:
            guess = denoise(ahead, sigmas[step + 1])
            ahead = stride.corrected(latents, guess)
            guesses.appendleft(guess)
        latents = ahead
        yield latents


def unipc_levels(sigmas: Tensor, first: float, steps: int, spacing: str) -> Tensor:
    """The levels from a timestep down to the cleanest, even in time, in the root of time, or in t."""
    if spacing == "logSNR":
        ends = sigma_at(sigmas, torch.tensor([first, 0.0])).log()
        return torch.linspace(float(ends[0]), float(ends[1]), steps + 1).exp()
    power = 2 if spacing == "time_quadratic" else 1
    count = len(sigmas)
    starts, ends = ((place + 1) / count for place in (first, 0.0))  # the paper's time, from 1 / 1000 to 1
    times = torch.linspace(starts ** (1 / power), ends ** (1 / power), steps + 1, dtype=torch.float64) ** power
    return sigma_at(sigmas, (times * count - 1).clamp(0, count - 1).float())


@dataclass(frozen=True)
class Stride:
    """One step: how long it is in t, sigma at both its ends, and the guesses that it looks back on, the newest first.

    ratios: where the older guesses were made, in steps of this length, then 1 for its own end.
    """

    length: Tensor
    narrower: Tensor
    guesses: Sequence[Tensor]
    ratios: Tensor
    variant: str

    @classmethod
    def along(cls, places: Sequence[Tensor], guesses: Sequence[Tensor], variant: str) -> Self:
        """The step to the first of these places from the second, the others having been passed before."""
        there, here, *passed = places
        length = there - here
        ratios = torch.stack([*((place - here) / length for place in passed), torch.ones(())])
        return cls(length, (-length).exp(), guesses, ratios, variant)

    def predicted(self, latents: Tensor) -> Tensor:
        """The latents at its end, from the guesses so far."""
        return self._moved(latents, self._changes())

    def corrected(self, latents: Tensor, guess: Tensor) -> Tensor:
        """The latents at its end, now that there is a guess."""
        return self._moved(latents, [*self._changes(), guess - self.guesses[0]])

    def _moved(self, latents: Tensor, changes: Sequence[Tensor]) -> Tensor:
        """The latents brought along by the newest guess, bent by its changes."""
        straight = self.narrower * latents - torch.expm1(-self.length) * self.guesses[0]
        for share, change in zip(self._shares(len(changes)), changes, strict=True):
            straight = straight - self._bound * share * change
        return straight

    def _changes(self) -> list[Tensor]:
        """D of the paper: how the guess changed from each older one to the newest, per step of this length."""
        newest = self.guesses[0]
        return [(each - newest) / ratio for each, ratio in zip(self.guesses[1:], self.ratios, strict=False)]

    @property
    def _bound(self) -> Tensor:
        """B(h) of the paper's section 3.4."""
        return -self.length if self.variant == "bh1" else torch.expm1(-self.length)

    def _shares(self, count: int) -> list[float]:
        """How much each change counts: the solution of equation 5 for the first so many ratios."""
        if count < 2:
            return [0.5] * count
        back = -self.length
        powers = torch.stack([self.ratios[:count] ** power for power in range(count)])
        phi, sums = torch.expm1(back) / back - 1, list[Tensor]()
        for power in range(1, count + 1):
            sums.append(phi * math.factorial(power) / self._bound)
            phi = phi / back - 1 / math.factorial(power + 1)
        return linalg.solve(powers, torch.stack(sums)).tolist()
