"""Noise schedules: how the noise levels of the steps are spaced, under the names that A1111 uses since version 1.9."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import UnknownName
from velatura.sampling.recipe.sampler_names import NEAREST_SCHEDULERS, find_scheduler_name, name_key

KARRAS_RHO = 7.0  # Karras et al., equation 5
BETA_PARAMETER = 0.6  # both parameters of the beta distribution, Lee et al., section 4
AYS_SIGMA_MIN = 0.029  # last level of the tables of Sabour et al., which is 0 in diffusers


@dataclass(frozen=True)
class SigmaRange:
    """A range of noise levels, for a scheduler to space levels in.

    Attributes:
        model_sigmas: All levels that the model was trained at, the cleanest first.
        sigma_min, sigma_max: The ends of the range, 0-d.
        rho: Parameter of some schedulers. None: the scheduler's own value.
        family: Name of the base's family, for schedulers with a table for each.
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
        """Return the range between two levels; 0 means the first or last level that the model was trained at."""
        low = model_sigmas.new_tensor(sigma_min) if sigma_min else model_sigmas[0]
        high = model_sigmas.new_tensor(sigma_max) if sigma_max else model_sigmas[-1]
        return cls(model_sigmas, low, high, rho, family)


# (range, steps) -> sigmas, the noisiest first, one more than there are steps
Scheduler = Callable[[SigmaRange, int], Tensor]

AUTOMATIC_SCHEDULER = "Automatic"
RHO_SCHEDULERS = frozenset({"Karras", "Polyexponential"})
FIXED_RANGE_SCHEDULERS = frozenset({"Align Your Steps", "Simple", "DDIM"})  # which ignore sigma_min and sigma_max


def find_scheduler(name: str) -> str:
    """Return the name of a scheduler as SCHEDULERS spells it.

    Args:
        name: The name in any case, with spaces, underscores or neither, or the word of another program.

    Raises:
        UnknownName: No such scheduler exists; the message suggests similar names, or the nearest to one that only
            other programs have.
    """
    if found := find_scheduler_name(name):
        return found
    if nearest_name := NEAREST_SCHEDULERS.get(name_key(name)):
        raise UnknownName(f"velatura does not have the scheduler {name!r}: the nearest that it has is {nearest_name}")
    raise UnknownName.with_suggestions("scheduler", name, (AUTOMATIC_SCHEDULER, *SCHEDULERS))


def uniform(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Space levels evenly in time, then 0."""
    return _append_zero(t_to_sigma(sigma_range.model_sigmas, _t_linspace(sigma_range, steps)))


def sgm_uniform(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Space levels evenly in time without the cleanest, as Stability AI's generative-models does, then 0."""
    return _append_zero(t_to_sigma(sigma_range.model_sigmas, _t_linspace(sigma_range, steps + 1)[:-1]))


def karras(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Space levels evenly in sigma ** (1 / rho) (Karras et al. 2022, equation 5), then 0."""
    rho = sigma_range.rho or KARRAS_RHO
    min_inv_rho, max_inv_rho = sigma_range.sigma_min ** (1 / rho), sigma_range.sigma_max ** (1 / rho)
    return _append_zero((max_inv_rho + torch.linspace(0, 1, steps) * (min_inv_rho - max_inv_rho)) ** rho)


def exponential(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Space levels evenly in log sigma, then 0."""
    return _append_zero(
        torch.linspace(float(sigma_range.sigma_max.log()), float(sigma_range.sigma_min.log()), steps).exp()
    )


def polyexponential(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Space levels by a power of a ramp in log sigma, then 0; a rho of 1 gives the exponential schedule."""
    ramp = torch.linspace(1, 0, steps) ** (sigma_range.rho or 1.0)
    return _append_zero(
        (sigma_range.sigma_min.log() + ramp * (sigma_range.sigma_max.log() - sigma_range.sigma_min.log())).exp()
    )


def kl_optimal(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Space levels evenly in arctan sigma (Sabour et al. 2024, "Align Your Steps", theorem 3.1), without a final 0."""
    fractions = torch.arange(steps + 1) / steps
    return torch.tan(fractions * sigma_range.sigma_min.atan() + (1 - fractions) * sigma_range.sigma_max.atan())


def align_your_steps(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Interpolate the levels that Sabour et al. found for SD1 and SDXL, in log sigma, then 0."""
    from diffusers.schedulers.scheduling_utils import AysSchedules

    table = AysSchedules["StableDiffusionXLSigmas" if sigma_range.family == "SDXL" else "StableDiffusionSigmas"]
    logs = torch.tensor([*table[:-1], AYS_SIGMA_MIN]).log()
    return _append_zero(_interpolate(logs, torch.linspace(0, len(logs) - 1, steps)).exp())


def simple(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Take every n-th level that the model was trained at, from the noisiest on, then 0."""
    spacing = len(sigma_range.model_sigmas) / steps
    return _append_zero(
        sigma_range.model_sigmas[[len(sigma_range.model_sigmas) - 1 - int(step * spacing) for step in range(steps)]]
    )


def ddim(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Take every n-th level that the model was trained at, from the second cleanest up, then 0.

    If the number of steps does not divide 1000, there may be a few more levels.
    """
    return _append_zero(sigma_range.model_sigmas[1 :: max(len(sigma_range.model_sigmas) // steps, 1)].flip(0))


def beta(sigma_range: SigmaRange, steps: int) -> Tensor:
    """Space levels by quantiles of a beta distribution (Lee et al. 2024, "Beta Sampling is All You Need"), then 0."""
    fractions = _beta_quantiles(torch.linspace(1, 0, steps, dtype=torch.float64)).float()
    return _append_zero(sigma_range.sigma_min + fractions * (sigma_range.sigma_max - sigma_range.sigma_min))


def compute_model_sigmas(schedule: NoiseSchedule) -> Tensor:
    """Return all noise levels that a model was trained at, (timesteps,), the cleanest first.

    They are computed from rounded alphas as in k-diffusion, because Brownian noise depends on their last digit.
    """
    alphas = schedule.alphas_cumprod
    return ((1 - alphas) / alphas).sqrt()


def sigma_to_t(sigmas: Tensor, sigma: Tensor) -> Tensor:
    """Return the fractional index of a noise level among those of a model, interpolated in log sigma."""
    logs, log = sigmas.log(), sigma.log()
    low_index = (torch.searchsorted(logs, log) - 1).clamp(0, len(logs) - 2)
    fraction = (log - logs[low_index]) / (logs[low_index + 1] - logs[low_index])
    return low_index + fraction.clamp(0, 1)


def sigma_to_nearest_t(sigmas: Tensor, sigma: Tensor) -> Tensor:
    """Return the index of the nearest level in log sigma; of two equally near ones the noisier."""
    return len(sigmas) - 1 - (sigmas.log() - sigma.log()).abs().flip(0).argmin()


def t_to_sigma(sigmas: Tensor, t: Tensor) -> Tensor:
    """Return the noise levels at fractional indices, the inverse of sigma_to_t."""
    return _interpolate(sigmas.log(), t).exp()


def _interpolate(values: Tensor, positions: Tensor) -> Tensor:
    low_index = positions.long()
    fraction = positions - low_index
    return (1 - fraction) * values[low_index] + fraction * values[(low_index + 1).clamp(max=len(values) - 1)]


def _t_linspace(sigma_range: SigmaRange, count: int) -> Tensor:
    """Return so many timesteps, evenly spaced from the noisiest to the cleanest."""
    t_max = sigma_to_t(sigma_range.model_sigmas, sigma_range.sigma_max)
    t_min = sigma_to_t(sigma_range.model_sigmas, sigma_range.sigma_min)
    return torch.linspace(float(t_max), float(t_min), count)


def _beta_quantiles(probabilities: Tensor) -> Tensor:
    """Return quantiles of the beta distribution; the substitution x = sin² removes the poles of its density."""
    angles = torch.linspace(0, torch.pi / 2, 2**17 + 1, dtype=torch.float64)
    density = (angles.sin() * angles.cos()) ** (2 * BETA_PARAMETER - 1)
    cdf = torch.cat([angles.new_zeros(1), torch.cumulative_trapezoid(density, angles)])
    cdf = cdf / cdf[-1]
    index = torch.searchsorted(cdf, probabilities).clamp(1, len(cdf) - 1)
    fraction = (probabilities - cdf[index - 1]) / (cdf[index] - cdf[index - 1])
    return angles[index - 1].lerp(angles[index], fraction).sin() ** 2


def _append_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


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
