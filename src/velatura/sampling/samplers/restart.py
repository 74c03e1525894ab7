"""Restart: go back up to more noise and come down again, with the numbers that the webui took for it.

Xu et al. 2023, "Restart Sampling for Improving Generative Processes", algorithm 1.
"""

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from velatura.sampling.samplers.course import Course, Denoise, Source
from velatura.sampling.samplers.slopes import trapezoid
from velatura.sampling.schedules import Span, karras

FEWEST_STEPS = 20  # that are worth a restart
LOW, HIGH = 0.1, 2.0  # the levels it is made from and back to
ONCE, STEPS_OF_ONE = 36, 9  # below so many steps there is one restart, of so many steps; else two of a quarter each


def restart(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Heun's steps, a part of which are walked again from fresh noise."""
    last = course.sigmas[0]
    for here, there in restarts(course):
        if here > last:
            latents = latents + noise.draw() * course.settings.churn_noise * (here**2 - last**2).sqrt()
        latents, last = trapezoid(denoise, latents, here, there), there
        yield latents


def restarts(course: Course) -> list[tuple[Tensor, Tensor]]:
    """All steps in their order, those of restarts where they are made; in all as many as the course has."""
    if course.steps < FEWEST_STEPS:
        return list(course.strides)
    again, times = (STEPS_OF_ONE, 1) if course.steps < ONCE else (course.steps // 4, 2)
    sigmas = karras(Span(course.known, course.cleanest, course.sigmas[0]), course.steps - again * times)
    low, high = (int((sigmas - level).abs().argmin()) for level in (LOW, HIGH))
    if high >= low:
        return list(course.strides)
    detour = karras(Span(course.known, sigmas[low], sigmas[high]), again + 1)[:-1]
    return [*pairwise(sigmas[: low + 1]), *list(pairwise(detour)) * times, *pairwise(sigmas[low:])]
