"""The levels of noise that a walk stops at: how they are spaced between the noisiest and the cleanest.

Under the names that the AUTOMATIC1111 webui has for them since 1.9.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from diffusers.schedulers.scheduling_utils import AysSchedules
from torch import Tensor

from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import UnknownName

KARRAS_RHO = 7.0  # Karras et al., equation 5
BETA_PARAMETER = 0.6  # both parameters of the beta distribution, Lee et al., section 4
AYS_SIGMA_MIN = 0.029  # the eleventh level of Sabour et al.'s tables, which diffusers has as 0


@dataclass(frozen=True)
class SigmaRange:
    """What levels are laid between.

    sigmas: all levels that the base was trained at, cleanest first; low, high: the ends, 0-d; rho: None for the
    scheduler's own; family: of the base, for tables that were found for one.
    """

    model_sigmas: Tensor
    sigma_min: Tensor
    sigma_max: Tensor
    rho: float | None = None
    family: str = "SD1"

    @classmethod
    def of(
        cls,
        model_sigmas: Tensor,
        sigma_min: float = 0.0,
        sigma_max: float = 0.0,
        rho: float | None = None,
        family: str = "SD1",
    ) -> Self:
        """The span between two levels, those that the base was trained at where 0 is given."""
        ends = (
            model_sigmas.new_tensor(sigma_min) if sigma_min else model_sigmas[0],
            model_sigmas.new_tensor(sigma_max) if sigma_max else model_sigmas[-1],
        )
        return cls(model_sigmas, *ends, rho, family)


Scheduler = Callable[
    [SigmaRange, int], Tensor
]  # (span, steps) -> sigmas, one more than there are steps, noisiest first
AUTOMATIC_SCHEDULER = "Automatic"
RHO_SCHEDULERS = frozenset({"Karras", "Polyexponential"})
FIXED_RANGE_SCHEDULERS = frozenset({"Align Your Steps", "Simple", "DDIM"})  # whatever sigma_min and sigma_max are


def find_scheduler(name: str) -> str:
    """The name that a scheduler has in SCHEDULERS, from it in any case and with or without spaces."""
    name_by_key = {_normalize_name(scheduler): scheduler for scheduler in (AUTOMATIC_SCHEDULER, *SCHEDULERS)}
    if _normalize_name(name) not in name_by_key:
        raise UnknownName.with_suggestions("scheduler", name, (AUTOMATIC_SCHEDULER, *SCHEDULERS))
    return name_by_key[_normalize_name(name)]


def uniform(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Even in time from the noisiest to the cleanest, then 0."""
    return _append_zero(t_to_sigma(sigma_range.model_sigmas, torch.linspace(*_t_range(sigma_range), steps)))


def sgm_uniform(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Even in time and short of the cleanest, as Stability AI's generative-models have it, then 0."""
    return _append_zero(t_to_sigma(sigma_range.model_sigmas, torch.linspace(*_t_range(sigma_range), steps + 1)[:-1]))


def karras(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Crowding towards the clean end (Karras et al. 2022, equation 5), then 0."""
    rho = sigma_range.rho or KARRAS_RHO
    min_inv_rho, max_inv_rho = sigma_range.sigma_min ** (1 / rho), sigma_range.sigma_max ** (1 / rho)
    return _append_zero((max_inv_rho + torch.linspace(0, 1, steps) * (min_inv_rho - max_inv_rho)) ** rho)


def exponential(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Even in the logarithm of sigma, then 0."""
    return _append_zero(
        torch.linspace(float(sigma_range.sigma_max.log()), float(sigma_range.sigma_min.log()), steps).exp()
    )


def polyexponential(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Even in a power of the logarithm of sigma, then 0; with a rho of 1 it is the exponential one."""
    ramp = torch.linspace(1, 0, steps) ** (sigma_range.rho or 1.0)
    return _append_zero(
        (sigma_range.sigma_min.log() + ramp * (sigma_range.sigma_max.log() - sigma_range.sigma_min.log())).exp()
    )


def kl_optimal(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Even in the arc tangent of sigma (Sabour et al. 2024, "Align Your Steps", theorem 3.1); ends at the cleanest."""
    fractions = torch.arange(steps + 1) / steps
    return torch.tan(fractions * sigma_range.sigma_min.atan() + (1 - fractions) * sigma_range.sigma_max.atan())


def align_your_steps(sigma_range: SigmaRange, steps: int) -> Tensor:
    """The levels that Sabour et al. found for SD 1 and SDXL, even in their logarithms between them, then 0."""
    table = AysSchedules["StableDiffusionXLSigmas" if sigma_range.family == "SDXL" else "StableDiffusionSigmas"]
    logs = torch.tensor([*table[:-1], AYS_SIGMA_MIN]).log()
    return _append_zero(_interpolate(logs, torch.linspace(0, len(logs) - 1, steps)).exp())


def simple(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Every n-th of the levels that the base was trained at, from the noisiest on, then 0."""
    spacing = len(sigma_range.model_sigmas) / steps
    return _append_zero(
        sigma_range.model_sigmas[[len(sigma_range.model_sigmas) - 1 - int(step * spacing) for step in range(steps)]]
    )


def ddim(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Every n-th of the levels that the base was trained at, from the second cleanest up, then 0.

    Where the steps do not divide a thousand there may be a few more of them.
    """
    return _append_zero(sigma_range.model_sigmas[1 :: max(len(sigma_range.model_sigmas) // steps, 1)].flip(0))


def beta(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Crowding at both ends (Lee et al. 2024, "Beta Sampling is All You Need"), then 0."""
    fractions = _beta_quantiles(torch.linspace(1, 0, steps, dtype=torch.float64)).float()
    return _append_zero(sigma_range.sigma_min + fractions * (sigma_range.sigma_max - sigma_range.sigma_min))


def compute_model_sigmas(schedule: NoiseSchedule) -> Tensor:
    """All levels that a base was trained at, cleanest first, reckoned from its rounded alphas as k-diffusion does.

    Random paths between levels depend on their last digit.
    """
    alphas = schedule.alphas_cumprod
    return ((1 - alphas) / alphas).sqrt()


def sigma_to_timestep(schedule: NoiseSchedule, sigma: Tensor) -> Tensor:
    """The timestep, not rounded, at which the schedule's noise is sigma: linear in its logarithm between two steps."""
    return sigma_to_t(schedule.sigmas, sigma)


def sigma_to_t(sigmas: Tensor, sigma: Tensor) -> Tensor:
    """The place of a level among those of a base, not rounded: linear in its logarithm between two."""
    logs, log = sigmas.log(), sigma.log()
    low_index = (torch.searchsorted(logs, log) - 1).clamp(0, len(logs) - 2)
    fraction = (log - logs[low_index]) / (logs[low_index + 1] - logs[low_index])
    return low_index + fraction.clamp(0, 1)


def sigma_to_nearest_t(sigmas: Tensor, sigma: Tensor) -> Tensor:
    """The place of the level among those of a base that is nearest in its logarithm; of two as near the noisier."""
    return len(sigmas) - 1 - (sigmas.log() - sigma.log()).abs().flip(0).argmin()


def t_to_sigma(sigmas: Tensor, t: Tensor) -> Tensor:
    """The levels at places that need be no whole numbers; what time_of takes back."""
    return _interpolate(sigmas.log(), t).exp()


def _interpolate(values: Tensor, positions: Tensor) -> Tensor:
    low_index = positions.long()
    fraction = positions - low_index
    return (1 - fraction) * values[low_index] + fraction * values[(low_index + 1).clamp(max=len(values) - 1)]


def _t_range(sigma_range: SigmaRange) -> tuple[float, float]:
    return float(sigma_to_t(sigma_range.model_sigmas, sigma_range.sigma_max)), float(
        sigma_to_t(sigma_range.model_sigmas, sigma_range.sigma_min)
    )


def _beta_quantiles(probabilities: Tensor) -> Tensor:
    """Where the beta distribution has come to these shares; with sin² for its variable, its density has no poles."""
    angles = torch.linspace(0, torch.pi / 2, 2**17 + 1, dtype=torch.float64)
    density = (angles.sin() * angles.cos()) ** (2 * BETA_PARAMETER - 1)
    cdf = torch.cat([angles.new_zeros(1), torch.cumulative_trapezoid(density, angles)])
    cdf = cdf / cdf[-1]
    index = torch.searchsorted(cdf, probabilities).clamp(1, len(cdf) - 1)
    fraction = (probabilities - cdf[index - 1]) / (cdf[index] - cdf[index - 1])
    return angles[index - 1].lerp(angles[index], fraction).sin() ** 2


def _append_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def _normalize_name(name: str) -> str:
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
