"""One walk from noise to a picture, laid out before its first step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from velatura.sampling.schedules import nearest_time, time_of
from velatura.sampling.settings import Settings

Denoise = Callable[[Tensor, Tensor], Tensor]  # (noisy latents, sigma, 0-d) -> the clean latents that are guessed
Between = Callable[[Tensor, Tensor], Tensor]  # (sigma here, sigma there) -> noise of unit variance


class Source(Protocol):
    """Where fresh noise comes from, for all pictures of a batch."""

    def draw(self) -> Tensor:
        """The next noise of unit variance."""
        ...

    def brownian(self, low: float, high: float) -> Between:
        """One random path between two levels, whose differences are noise: the same whatever steps are taken."""
        ...


@dataclass(frozen=True)
class Course:
    """The levels of noise that a walk stops at, and all that settles how it is walked.

    sigmas: noisiest first; known: all levels that the base was trained at, cleanest first, and times: their timesteps.
    low, high: the ends of the whole schedule, of which an image to begin from leaves a part. eta: of ancestral steps.
    noisy, clean, last: what noise, and an image's latents, are multiplied by at the start, and what all is divided by
    at the end.
    """

    sigmas: Tensor
    known: Tensor
    times: Tensor
    low: float
    high: float
    settings: Settings
    eta: float
    noisy: float
    clean: float = 1.0
    last: float = 1.0
    quantised: bool = False

    @property
    def steps(self) -> int:
        """How often a walk yields."""
        return len(self.sigmas) - 1

    @property
    def strides(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each level with the next."""
        return pairwise(self.sigmas)

    @property
    def cleanest(self) -> Tensor:
        """Where those stop that choose their own levels: at the cleanest that there is, or that was asked for."""
        asked = self.settings.sigma_min
        return torch.minimum(self.sigmas[0], self.known.new_tensor(asked) if asked else self.known[0])

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep to call the model at, not rounded unless only some are allowed."""
        if self.quantised:
            return self.times[nearest_time(self.known, sigma)]
        return time_of(self.known, sigma)

    def start(self, noise: Tensor, latents: Tensor | None) -> Tensor:
        """Where the walk starts: noise, over the latents of an image where there is one."""
        return noise * self.noisy if latents is None else latents * self.clean + noise * self.noisy

    def below(self, here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Where an ancestral step goes down to, and how much fresh noise brings it up to the level it is bound for.

        The share of the latter is eta: Song et al. 2021, "Denoising Diffusion Implicit Models", equation 16, in sigmas.
        """
        up = torch.minimum(there, self.eta * (there**2 * (here**2 - there**2) / here**2).sqrt())
        return (there**2 - up**2).sqrt(), up


Walk = Callable[[Denoise, Tensor, Course, Source], Iterator[Tensor]]
