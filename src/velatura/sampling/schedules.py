"""The levels of noise that a walk stops at: how they are spaced between the noisiest and the cleanest.

Under the names that the AUTOMATIC1111 webui has for them since 1.9.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from torch import Tensor

from velatura.base.schedule import Schedule
from velatura.errors import UnknownName

RHO = 7.0  # Karras et al., equation 5
BETA = 0.6  # both parameters of the beta distribution, Lee et al., section 4
CLEANEST_OF_AYS = 0.029  # the eleventh level of Sabour et al.'s tables, which diffusers has as 0


@dataclass(frozen=True)
class Span:
    """What levels are laid between.

    sigmas: all levels that the base was trained at, cleanest first; low, high: the ends, 0-d; rho: None for the
    scheduler's own; family: of the base, for tables that were found for one.
    """

    sigmas: Tensor
    low: Tensor
    high: Tensor
    rho: float | None = None
    family: str = "SD1"

    @classmethod
    def of(
        cls, sigmas: Tensor, low: float = 0.0, high: float = 0.0, rho: float | None = None, family: str = "SD1"
    ) -> Self:
        """The span between two levels, those that the base was trained at where 0 is given."""
        ends = (sigmas.new_tensor(low) if low else sigmas[0], sigmas.new_tensor(high) if high else sigmas[-1])
        return cls(sigmas, *ends, rho, family)


Scheduler = Callable[[Span, int], Tensor]  # (span, steps) -> sigmas, one more than there are steps, noisiest first
AUTOMATIC = "Automatic"
HEEDS_RHO = frozenset({"Karras", "Polyexponential"})
HAS_ITS_ENDS = frozenset({"Align Your Steps", "Simple", "DDIM"})  # whatever sigma_min and sigma_max are


def find_scheduler(name: str) -> str:
    """The name that a scheduler has in SCHEDULERS, from it in any case and with or without spaces."""
    by_letters = {_letters(each): each for each in (AUTOMATIC, *SCHEDULERS)}
    if _letters(name) not in by_letters:
        raise UnknownName.among("scheduler", name, (AUTOMATIC, *SCHEDULERS))
    return by_letters[_letters(name)]


def uniform(span: Span, steps: int) -> Tensor:
    """Even in time from the noisiest to the cleanest, then 0."""
    return _to_zero(sigma_at(span.sigmas, torch.linspace(*_times(span), steps)))


def sgm_uniform(span: Span, steps: int) -> Tensor:
    """Even in time and short of the cleanest, as Stability AI's generative-models have it, then 0."""
    return _to_zero(sigma_at(span.sigmas, torch.linspace(*_times(span), steps + 1)[:-1]))


def karras(span: Span, steps: int) -> Tensor:
    """Crowding towards the clean end (Karras et al. 2022, equation 5), then 0."""
    rho = span.rho or RHO
    low, high = span.low ** (1 / rho), span.high ** (1 / rho)
    return _to_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho)


def exponential(span: Span, steps: int) -> Tensor:
    """Even in the logarithm of sigma, then 0."""
    return _to_zero(torch.linspace(float(span.high.log()), float(span.low.log()), steps).exp())


def polyexponential(span: Span, steps: int) -> Tensor:
    """Even in a power of the logarithm of sigma, then 0; with a rho of 1 it is the exponential one."""
    shares = torch.linspace(1, 0, steps) ** (span.rho or 1.0)
    return _to_zero((span.low.log() + shares * (span.high.log() - span.low.log())).exp())


def kl_optimal(span: Span, steps: int) -> Tensor:
    """Even in the arc tangent of sigma (Sabour et al. 2024, "Align Your Steps", theorem 3.1); ends at the cleanest."""
    shares = torch.arange(steps + 1) / steps
    return torch.tan(shares * span.low.atan() + (1 - shares) * span.high.atan())


def align_your_steps(span: Span, steps: int) -> Tensor:
    """The levels that Sabour et al. found for SD 1 and SDXL, even in their logarithms between them, then 0."""
    table = AysSchedules["StableDiffusionXLSigmas" if span.family == "SDXL" else "StableDiffusionSigmas"]
    logs = torch.tensor([*table[:-1], CLEANEST_OF_AYS]).log()
    return _to_zero(_between(logs, torch.linspace(0, len(logs) - 1, steps)).exp())


def simple(span: Span, steps: int) -> Tensor:
    """Every n-th of the levels that the base was trained at, from the noisiest on, then 0."""
    stride = len(span.sigmas) / steps
    return _to_zero(span.sigmas[[len(span.sigmas) - 1 - int(step * stride) for step in range(steps)]])


def ddim(span: Span, steps: int) -> Tensor:
    """Every n-th of the levels that the base was trained at, from the second cleanest up, then 0.

    Where the steps do not divide a thousand there may be a few more of them.
    """
    return _to_zero(span.sigmas[1 :: max(len(span.sigmas) // steps, 1)].flip(0))


def beta(span: Span, steps: int) -> Tensor:
    """Crowding at both ends (Lee et al. 2024, "Beta Sampling is All You Need"), then 0."""
    shares = _beta_quantiles(torch.linspace(1, 0, steps, dtype=torch.float64)).float()
    return _to_zero(span.low + shares * (span.high - span.low))


def trained_sigmas(schedule: Schedule) -> Tensor:
    """All levels that a base was trained at, cleanest first, reckoned from its rounded alphas as k-diffusion does.

    Random paths between levels depend on their last digit.
    """
    alphas = schedule.alphas_cumprod
    return ((1 - alphas) / alphas).sqrt()


def timestep_of(schedule: Schedule, sigma: Tensor) -> Tensor:
    """The timestep, not rounded, at which the schedule's noise is sigma: linear in its logarithm between two steps."""
    return time_of(schedule.sigmas, sigma)


def time_of(sigmas: Tensor, sigma: Tensor) -> Tensor:
    """The place of a level among those of a base, not rounded: linear in its logarithm between two."""
    logs, log = sigmas.log(), sigma.log()
    below = (torch.searchsorted(logs, log) - 1).clamp(0, len(logs) - 2)
    share = (log - logs[below]) / (logs[below + 1] - logs[below])
    return below + share.clamp(0, 1)


def nearest_time(sigmas: Tensor, sigma: Tensor) -> Tensor:
    """The place of the level among those of a base that is nearest in its logarithm; of two as near the noisier."""
    return len(sigmas) - 1 - (sigmas.log() - sigma.log()).abs().flip(0).argmin()


def sigma_at(sigmas: Tensor, times: Tensor) -> Tensor:
    """The levels at places that need be no whole numbers; what time_of takes back."""
    return _between(sigmas.log(), times).exp()


def _between(values: Tensor, places: Tensor) -> Tensor:
    below = places.long()
    share = places - below
    return (1 - share) * values[below] + share * values[(below + 1).clamp(max=len(values) - 1)]


def _times(span: Span) -> tuple[float, float]:
    return float(time_of(span.sigmas, span.high)), float(time_of(span.sigmas, span.low))


def _beta_quantiles(shares: Tensor) -> Tensor:
    """Where the beta distribution has come to these shares; with sin² for its variable, its density has no poles."""
    angles = torch.linspace(0, torch.pi / 2, 2**17 + 1, dtype=torch.float64)
    density = (angles.sin() * angles.cos()) ** (2 * BETA - 1)
    reached = torch.cat([angles.new_zeros(1), torch.cumulative_trapezoid(density, angles)])
    reached = reached / reached[-1]
    after = torch.searchsorted(reached, shares).clamp(1, len(reached) - 1)
    share = (shares - reached[after - 1]) / (reached[after] - reached[after - 1])
    return angles[after - 1].lerp(angles[after], share).sin() ** 2


def _to_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _letters(name: str) -> str:
    return name.lower().replace(" ", "").replace("_", "")


SCHEDULERS: dict[str, Scheduler] = {
    "Uniform": uniform,
    "Karras": karras,
    "Exponential": exponential,
    "Polyexponential": polyexponential,
    "SGM Uniform": sgm_uniform,
    "KL Optimal": kl_optimal,
    "Align Your Steps": align_your_steps,
    "Simple": simple,
    "Normal": uniform,
    "DDIM": ddim,
    "Beta": beta,
}
