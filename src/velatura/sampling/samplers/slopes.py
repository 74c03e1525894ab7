"""Samplers that follow the slope dx / dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, equation 1)."""

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from velatura.sampling.samplers.course import Course, Denoise, Source

ORDER = 4  # slopes that LMS looks back on


def euler(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Follow the slope at each level to the next (Karras et al., algorithm 2 without its correction)."""
    for here, there in course.strides:
        latents, above = churned(latents, here, course, noise)
        latents = latents + slope(denoise, latents, above) * (there - above)
        yield latents


def euler_ancestral(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Step below the next level, then add fresh noise up to it."""
    for here, there in course.strides:
        down, up = course.below(here, there)
        latents = latents + slope(denoise, latents, here) * (down - here)
        yield (latents := freshened(latents, there, up, course, noise))


def heun(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Take each step with the mean of the slopes at both its ends (Karras et al., algorithm 2)."""
    for here, there in course.strides:
        latents, above = churned(latents, here, course, noise)
        yield (latents := trapezoid(denoise, latents, above, there))


def dpm2(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Take each step with the slope in its middle (Lu et al. 2022, "DPM-Solver", algorithm 1, in Karras' terms)."""
    for here, there in course.strides:
        latents, above = churned(latents, here, course, noise)
        yield (latents := midpoint(denoise, latents, above, there))


def dpm2_ancestral(denoise: Denoise, latents: Tensor, course: Course, noise: Source) -> Iterator[Tensor]:
    """Step below the next level by the slope in the middle, then add fresh noise up to it."""
    for here, there in course.strides:
        down, up = course.below(here, there)
        latents = midpoint(denoise, latents, here, down)
        yield (latents := freshened(latents, there, up, course, noise))


def lms(denoise: Denoise, latents: Tensor, course: Course, _noise: Source) -> Iterator[Tensor]:
    """Integrate the polynomial through the last four slopes (Adams-Bashforth with unequal steps)."""
    sigmas = [float(sigma) for sigma in course.sigmas]
    slopes: deque[Tensor] = deque(maxlen=ORDER)  # the newest first
    for step in range(course.steps):
        slopes.appendleft(slope(denoise, latents, course.sigmas[step]))
        shares = adams_bashforth(sigmas[max(step - ORDER + 1, 0) : step + 2])
        latents = latents + sum(share * each for share, each in zip(shares, slopes, strict=True))
        yield latents


def slope(denoise: Denoise, latents: Tensor, sigma: Tensor) -> Tensor:
    """Where the latents are drawn, per unit of sigma; it is also the noise that is guessed to be in them."""
    return (latents - denoise(latents, sigma)) / sigma


def trapezoid(denoise: Denoise, latents: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """One step by the mean of two slopes, or by the first where no noise is left at its end."""
    first = slope(denoise, latents, here)
    ahead = latents + first * (there - here)
    if there == 0:
        return ahead
    return latents + (first + slope(denoise, ahead, there)) / 2 * (there - here)


def midpoint(denoise: Denoise, latents: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """One step by the slope half way in the logarithm of sigma, or by the first where no noise is left at its end."""
    first = slope(denoise, latents, here)
    if there == 0:
        return latents + first * (there - here)
    middle = here.log().lerp(there.log(), 0.5).exp()
    return latents + slope(denoise, latents + first * (middle - here), middle) * (there - here)


def churned(latents: Tensor, here: Tensor, course: Course, noise: Source) -> tuple[Tensor, Tensor]:
    """The latents with a little fresh noise, and the level that this brings them up to (Karras et al., algorithm 2)."""
    settings = course.settings
    inside = settings.churn_from <= here <= (settings.churn_to or math.inf)
    share = min(settings.churn / course.steps, math.sqrt(2) - 1) if inside else 0.0
    if not settings.churn:
        return latents, here
    fresh, above = noise.draw() * settings.churn_noise, here * (share + 1)  # drawn in any case, as A1111 does
    return latents + fresh * (above**2 - here**2).sqrt(), above


def freshened(latents: Tensor, there: Tensor, up: Tensor, course: Course, noise: Source) -> Tensor:
    """The latents with fresh noise, unless the walk ends here."""
    if there == 0:
        return latents
    return latents + noise.draw() * course.settings.churn_noise * up


def adams_bashforth(sigmas: list[float]) -> list[float]:
    """How much each slope counts, the newest first; sigmas: where they were taken, then where the step ends."""
    *taken, end = sigmas
    shares: list[float] = []
    for own in reversed(taken):
        others = [other for other in taken if other != own]
        lagrange = np.poly1d(others, r=True) / math.prod(own - other for other in others)
        area = lagrange.integ()
        shares.append(float(area(end) - area(taken[-1])))
    return shares
