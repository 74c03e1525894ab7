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

from velatura.sampling.samplers.course import Course, Denoise, Source
from velatura.sampling.samplers.slopes import slope

ABSOLUTE, RELATIVE = 0.0078, 0.05  # tolerances of the paper's appendix C, for latents
FIRST_STRIDE, SAFETY = 0.05, 0.81
CLOSE_ENOUGH = 1e-5  # of t, to the end


class Attempt:
    """Steps from one place, each of whose slopes is asked for once.

    The slope is the noise that is guessed; places are measured in t.
    """

    def __init__(self, denoise: Denoise, latents: Tensor, here: Tensor) -> None:
        self._denoise = denoise
        self._latents = latents
        self._here = here
        self._slopes: dict[float, Tensor] = {}

    @cached_property
    def first(self) -> Tensor:
        """The slope where the steps start."""
        return self._slope(self._latents, self._here)

    def one(self, there: Tensor) -> Tensor:
        """Take a step by one slope (equation 3.7)."""
        return self._straight(there)

    def two(self, there: Tensor, share: float = 1 / 2) -> Tensor:
        """Take a step by a second slope at a share of the way (algorithm 4)."""
        stride = there - self._here
        bend = self._second(stride, share) - self.first
        return self._straight(there) - _grown(there, stride) / (2 * share) * bend

    def three(self, there: Tensor) -> Tensor:
        """Take a step by slopes at one and two thirds of the way (algorithm 5)."""
        stride = there - self._here
        near, far = 1 / 3, 2 / 3
        place = self._here + far * stride
        bend = self._second(stride, near) - self.first
        between = self._straight(place) - place.neg().exp() * (far / near) * _curved(far * stride) * bend
        third = self._slope(between, place)
        return self._straight(there) - there.neg().exp() / far * _curved(stride) * (third - self.first)

    def _straight(self, there: Tensor) -> Tensor:
        return self._latents - _grown(there, there - self._here) * self.first

    def _second(self, stride: Tensor, share: float) -> Tensor:
        place = self._here + share * stride
        if share not in self._slopes:
            self._slopes[share] = self._slope(self._straight(place), place)
        return self._slopes[share]

    def _slope(self, latents: Tensor, place: Tensor) -> Tensor:
        return slope(self._denoise, latents, place.neg().exp())


@dataclass
class Pace:
    """How long the next step may be, from how far a cheap and a dear one ended from each other (appendix C)."""

    order: float
    stride: float = FIRST_STRIDE
    accepted: bool = field(default=False, init=False)

    def judge(self, error: float) -> None:
        """Take note of the last step's error, 1 being as much as is allowed."""
        if not math.isfinite(error):  # no shorter step helps latents that are no numbers
            self.accepted = True
            return
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / self.order) - 1)
        self.accepted = factor >= SAFETY
        self.stride *= factor


def dpm_fast(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """As many calls as there are steps, in steps of three, two and one call that are even in t (section 3.4)."""
    orders = _orders(course.steps)
    stops = torch.linspace(*_ends(course), len(orders) + 1)
    passed = Passed(course)
    for order, here, there in zip(orders, stops, stops[1:], strict=False):
        down, up = _below(course, here, there, stops[-1])
        attempt = Attempt(denoise, latents, here)
        latents = (attempt.one, attempt.two, attempt.three)[order - 1](down)
        latents = latents + up * course.settings.churn_noise * noise.draw()
        yield from passed.at(latents, there)
    yield from passed.end(latents)


def dpm_adaptive(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Steps of three calls, as long as a step of two calls comes near to them (appendix C).

    The error is measured over all pictures of a batch at once, as the webui has it.
    """
    start, end = (torch.tensor(place) for place in _ends(course))
    pace, here, before, passed = Pace(1.5 if course.eta else 3.0), start, latents, Passed(course)
    while here < end - CLOSE_ENOUGH:
        there = torch.minimum(end, here + pace.stride)
        down, up = _below(course, here, there, end)
        attempt = Attempt(denoise, latents, here)
        cheap, dear = attempt.two(down, 1 / 3), attempt.three(down)
        allowed = (RELATIVE * torch.maximum(cheap.abs(), before.abs())).clamp(min=ABSOLUTE)
        pace.judge(float(((cheap - dear) / allowed).square().mean().sqrt()))
        if pace.accepted:
            before, here = cheap, there
            latents = dear + up * course.settings.churn_noise * noise.draw()
            yield from passed.at(latents, here)
    yield from passed.end(latents)


class Passed:
    """Yields latents as often as levels of a course are passed, so that a walk of other steps keeps its count."""

    def __init__(self, course: Course) -> None:
        self._left = [float(level) for level in course.sigmas[1:]]

    def at(self, latents: Tensor, place: Tensor) -> Iterator[Tensor]:
        """Yield the latents once for each level from which they have just come, but the last."""
        while len(self._left) > 1 and self._left[0] >= float(place.neg().exp()):
            self._left.pop(0)
            yield latents

    def end(self, latents: Tensor) -> Iterator[Tensor]:
        """Yield the latents for all levels that are left."""
        yield from (latents for _ in self._left)


def _orders(calls: int) -> list[int]:
    """How many calls each step makes, as many as there are in all."""
    threes, rest = divmod(calls, 3)
    if rest:
        return [3] * threes + [rest]
    return [3] * (threes - 1) + [2, 1]


def _ends(course: Course) -> tuple[float, float]:
    """The first level and the cleanest above 0, in t."""
    return -float(course.sigmas[0].log()), -float(course.cleanest.log())


def _below(course: Course, here: Tensor, there: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Where an ancestral step goes down to in t, but not below the end, and the noise that brings it up again."""
    if not course.eta:
        return there, torch.zeros(())
    sigma_there = there.neg().exp()
    down, _ = course.below(here.neg().exp(), sigma_there)
    down = torch.minimum(end, -down.log())
    return down, (sigma_there**2 - down.neg().exp() ** 2).clamp(min=0).sqrt()


def _grown(there: Tensor, stride: Tensor) -> Tensor:
    """What one slope counts in a step: sigma (e^h - 1)."""
    return there.neg().exp() * stride.expm1()


def _curved(stride: Tensor) -> Tensor:
    """What its change counts: (e^h - 1) / h - 1."""
    return stride.expm1() / stride - 1
