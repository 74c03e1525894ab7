"""Samplers of the stochastic equation, whose noise is the difference of one random path between two levels.

From Lu et al. 2022, "DPM-Solver++", and, with eta, from Karras et al.'s reading of it; t below is -log sigma.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.sampling.samplers.course import Course, Denoise, Source
from velatura.sampling.samplers.slopes import slope

MIDDLE = 0.5  # of a step, where its second call is made


def dpmpp_2s_ancestral(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Two calls to a step below the next level (DPM-Solver++, algorithm 1), then fresh noise up to it."""
    for here, there in course.strides:
        down, up = course.below(here, there)
        if down == 0:
            latents = latents + slope(denoise, latents, here) * (down - here)
        else:
            middle = here.log().lerp(down.log(), MIDDLE).exp()
            between = towards(denoise(latents, here), latents, here, middle)
            latents = towards(denoise(between, middle), latents, here, down)
        if there > 0:
            latents = latents + noise.draw() * course.settings.churn_noise * up
        yield latents


def dpmpp_sde(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Two calls to a step, each of which goes below its level and gets noise up to it."""
    path, strength = noise.brownian(course.low, course.high), course.settings.churn_noise
    for here, there in course.strides:
        guess = denoise(latents, here)
        if there == 0:
            latents = latents + (latents - guess) / here * (there - here)
        else:
            middle = here.log().lerp(there.log(), MIDDLE).exp()
            down, up = course.below(here, middle)
            between = towards(guess, latents, here, down) + path(here, middle) * strength * up
            second = denoise(between, middle)
            down, up = course.below(here, there)
            aim = guess.lerp(second, 1 / (2 * MIDDLE))
            latents = towards(aim, latents, here, down) + path(here, there) * strength * up
        yield latents


def dpmpp_2m_sde(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Extrapolate from the last two guesses to the middle of each step (DPM-Solver++, SDE-DPM-Solver++(2M))."""
    return _looking_back(_middle, denoise, latents, course, noise)


def dpmpp_2m_sde_heun(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Extrapolate from the last two guesses through each step."""
    return _looking_back(_through, denoise, latents, course, noise)


def dpmpp_3m_sde(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Extrapolate from the last three guesses through each step."""
    return _looking_back(_through_three, denoise, latents, course, noise)


def towards(guess: Tensor, latents: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Latents brought to another level as if the guess were right (DPM-Solver++, equation 8 of the first order)."""
    ratio = there / here
    return ratio * latents + (1 - ratio) * guess


@dataclass(frozen=True)
class _Memory:
    """The guesses of a walk and how long its steps were in t, the newest first; whole: the newest, times 1 + eta."""

    guesses: Sequence[Tensor]
    strides: Sequence[Tensor]
    whole: Tensor

    @property
    def decay(self) -> Tensor:
        """How much of the guess a step takes over."""
        return -torch.expm1(-self.whole)

    @property
    def through(self) -> Tensor:
        """What the guess's change over a step counts in it (phi_2 of exponential integrators)."""
        return 1 - self.decay / self.whole

    def change(self, back: int) -> Tensor:
        """The change of the guess over a step as long as the newest, as it was so many steps back."""
        return (self.guesses[back] - self.guesses[back + 1]) * self.strides[0] / self.strides[back + 1]


def _looking_back(
    bend: Callable[[_Memory], Tensor], denoise: Denoise, latents: Tensor, course: Course, noise: Source
) -> Iterator[Tensor]:
    """Walk with one call to a step; bend: what older guesses add to a step by the newest alone."""
    path = noise.brownian(course.low, course.high)
    guesses: deque[Tensor] = deque(maxlen=3)
    strides: deque[Tensor] = deque(maxlen=3)
    for here, there in course.strides:
        guesses.appendleft(denoise(latents, here))
        if there == 0:
            latents = guesses[0]
        else:
            strides.appendleft(here.log() - there.log())
            memory = _Memory(guesses, strides, strides[0] * (1 + course.eta))
            fresh = there * (-torch.expm1(-2 * course.eta * strides[0])).sqrt() * course.settings.churn_noise
            latents = torch.exp(-memory.whole) * latents + memory.decay * guesses[0]
            if len(strides) > 1:
                latents = latents + bend(memory)
            latents = latents + path(here, there) * fresh
        yield latents


def _middle(memory: _Memory) -> Tensor:
    return memory.decay / 2 * memory.change(0)


def _through(memory: _Memory) -> Tensor:
    return memory.through * memory.change(0)


def _through_three(memory: _Memory) -> Tensor:
    """The parabola through three guesses, once there are three, else the line through two."""
    if len(memory.strides) < 3:
        return _through(memory)
    newer, older = memory.strides[1] / memory.strides[0], memory.strides[2] / memory.strides[0]
    change, before = memory.change(0), memory.change(1)
    curve = (change - before) / (newer + older)
    return memory.through * (change + curve * newer) - (memory.through / memory.whole - 0.5) * curve
