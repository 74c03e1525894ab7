"""The ways from noise to a picture, each exact to k-diffusion's as the AUTOMATIC1111 webui runs it.

All walk in one space: latents whose noise has the standard deviation sigma (Karras et al. 2022, "Elucidating the design
space of diffusion-based generative models", the paper of the letters below).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from velatura.base.schedule import Schedule
from velatura.errors import UnknownName

Denoise = Callable[[Tensor, Tensor], Tensor]  # (noisy latents, sigma, 0-d) -> the clean latents that are guessed
Draw = Callable[[], Tensor]
Walk = Callable[[Denoise, Tensor, Tensor, Draw], Iterator[Tensor]]

RHO = 7.0  # Karras et al., equation 5


@dataclass(frozen=True)
class Sampler:
    """A way to walk from noise to clean latents.

    levels gives the sigmas it stops at, noisiest first; walk yields the latents after each step. A variance-preserving
    sampler starts from, and ends in, latents scaled so that picture and noise together have variance 1.
    """

    name: str
    walk: Walk
    levels: Callable[[Schedule, int], Tensor]
    preserves_variance: bool = False

    def sample(self, denoise: Denoise, draw: Draw, sigmas: Tensor) -> Iterator[Tensor]:
        """Walk from fresh noise along sigmas and yield the latents after each step."""
        first, last = _spreads(sigmas) if self.preserves_variance else (sigmas[0], sigmas.new_tensor(1.0))
        for latents in self.walk(denoise, draw() * first, sigmas, draw):
            yield latents / last


def find_sampler(name: str) -> Sampler:
    """The sampler of this name, in any case; raises UnknownName with those that are near."""
    by_lower = {each.lower(): sampler for each, sampler in SAMPLERS.items()}
    if name.lower() not in by_lower:
        raise UnknownName.among("sampler", name, SAMPLERS)
    return by_lower[name.lower()]


def model_levels(schedule: Schedule, steps: int) -> Tensor:
    """Sigmas at evenly spaced timesteps from the noisiest to the cleanest, then 0."""
    logs = schedule.sigmas.log()
    times = torch.linspace(len(logs) - 1, 0, steps)
    below = times.long()
    share = times - below
    above = (below + 1).clamp(max=len(logs) - 1)
    return _to_zero(((1 - share) * logs[below] + share * logs[above]).exp())


def karras_levels(schedule: Schedule, steps: int) -> Tensor:
    """Sigmas that crowd towards the clean end (Karras et al., equation 5), then 0."""
    low, high = schedule.sigmas[0] ** (1 / RHO), schedule.sigmas[-1] ** (1 / RHO)
    return _to_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** RHO)


def ddim_levels(schedule: Schedule, steps: int) -> Tensor:
    """Sigmas at every n-th timestep from the second on; the walk ends at the first of them, not at 0.

    So it is in A1111 since 1.6, where 8 steps of DDIM call the model 7 times; a single step, which would then call it
    never, goes from the noisiest timestep to the cleanest.
    """
    count = len(schedule.sigmas)
    times = torch.arange(1, count + 1, count // min(steps, count // 2)).clamp(max=count - 1)
    if len(times) < 2:
        times = torch.tensor([1, count - 1])
    return schedule.sigmas[times].flip(0)


def timestep_of(schedule: Schedule, sigma: Tensor) -> Tensor:
    """The timestep, not rounded, at which the schedule's noise is sigma: linear in its logarithm between two steps."""
    logs, log = schedule.sigmas.log(), sigma.log()
    below = (torch.searchsorted(logs, log) - 1).clamp(0, len(logs) - 2)
    share = (log - logs[below]) / (logs[below + 1] - logs[below])
    return below + share.clamp(0, 1)


def euler(denoise: Denoise, latents: Tensor, sigmas: Tensor, _draw: Draw) -> Iterator[Tensor]:
    """Follow the slope at each level to the next (Karras et al., algorithm 1 without its correction and churn)."""
    for here, there in pairwise(sigmas):
        slope = (latents - denoise(latents, here)) / here
        latents = latents + slope * (there - here)
        yield latents


def euler_ancestral(denoise: Denoise, latents: Tensor, sigmas: Tensor, draw: Draw) -> Iterator[Tensor]:
    """Step below the next level, then add fresh noise up to it."""
    for here, there in pairwise(sigmas):
        slope = (latents - denoise(latents, here)) / here
        up = torch.minimum(there, (there**2 * (here**2 - there**2) / here**2).sqrt())
        down = (there**2 - up**2).sqrt()
        latents = latents + slope * (down - here)
        if there > 0:
            latents = latents + draw() * up
        yield latents


def heun(denoise: Denoise, latents: Tensor, sigmas: Tensor, _draw: Draw) -> Iterator[Tensor]:
    """Take each step with the mean of the slopes at both its ends (Karras et al., algorithm 1)."""
    for here, there in pairwise(sigmas):
        slope = (latents - denoise(latents, here)) / here
        ahead = latents + slope * (there - here)
        if there > 0:
            slope = (slope + (ahead - denoise(ahead, there)) / there) / 2
            ahead = latents + slope * (there - here)
        latents = ahead
        yield latents


def dpmpp_2m(denoise: Denoise, latents: Tensor, sigmas: Tensor, _draw: Draw) -> Iterator[Tensor]:
    """Extrapolate from the last two guesses (Lu et al. 2022, "DPM-Solver++", algorithm 2)."""
    before, last_stride = None, None
    for here, there in pairwise(sigmas):
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


def _to_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _spreads(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """How much wider the latents are spread than variance 1, at the first level and at the last."""
    return (1 + sigmas[0] ** 2).sqrt(), (1 + sigmas[-1] ** 2).sqrt()


SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("Euler a", euler_ancestral, model_levels),
        Sampler("Euler", euler, model_levels),
        Sampler("Heun", heun, model_levels),
        Sampler("DPM++ 2M", dpmpp_2m, model_levels),
        Sampler("DPM++ 2M Karras", dpmpp_2m, karras_levels),
        Sampler("DDIM", euler, ddim_levels, preserves_variance=True),  # DDIM at eta 0 is Euler in this space
    )
}
