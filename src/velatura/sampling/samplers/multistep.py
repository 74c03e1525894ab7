"""Samplers that look back on their earlier guesses, one call of the model to a step."""

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from velatura.sampling.samplers.course import Course, Denoise, Source
from velatura.sampling.samplers.slopes import slope

# How much the newest and the older slopes count (Liu et al. 2022, "Pseudo Numerical Methods", equation 12)
ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def dpmpp_2m(denoise: Denoise, latents: Tensor, course: Course, _noise: Source) -> Iterator[Tensor]:
    """Extrapolate from the last two guesses (Lu et al. 2022, "DPM-Solver++", algorithm 2)."""
    before, last_stride = None, None
    for here, there in course.strides:
        guess = denoise(latents, here)
        stride = here.log() - there.log()  # of lambda, the logarithm of the signal's share; infinite at the end
        if before is None or last_stride is None or there == 0:
            aim = guess
        else:
            ratio = last_stride / stride
            aim = (1 + 1 / (2 * ratio)) * guess - 1 / (2 * ratio) * before
        latents = there / here * latents - torch.expm1(-stride) * aim
        before, last_stride = guess, stride
        yield latents


def plms(denoise: Denoise, latents: Tensor, course: Course, _noise: Source) -> Iterator[Tensor]:
    """Adams-Bashforth in DDIM's terms (Liu et al. 2022); the first step is taken twice, for the mean of its slopes."""
    slopes: deque[Tensor] = deque(maxlen=len(ADAMS))  # the newest first
    for here, there in course.strides:
        slopes.appendleft(slope(denoise, latents, here))
        if len(slopes) == 1:
            ahead = latents + slopes[0] * (there - here)
            aim = (slopes[0] + slope(denoise, ahead, there)) / 2
        else:
            aim = sum((share * each for share, each in zip(ADAMS[len(slopes) - 1], slopes, strict=True)), latents * 0)
        latents = latents + aim * (there - here)
        yield latents
