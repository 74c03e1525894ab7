"""A sampler: its step function, its noise levels, and the settings that it supports."""

import math
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import BadRecipe, warn
from velatura.sampling.recipe.sampler_settings import SamplerSettings
from velatura.sampling.recipe.sizes import Img2ImgSteps
from velatura.sampling.samplers.schedules import (
    AUTOMATIC_SCHEDULER,
    FIXED_RANGE_SCHEDULERS,
    RHO_SCHEDULERS,
    SCHEDULERS,
    SigmaRange,
    compute_model_sigmas,
    find_scheduler,
)
from velatura.sampling.samplers.trajectory import Denoiser, NoiseSource, SamplerFunction, Trajectory

# (model sigmas, timesteps to take, timestep to start from, settings) -> sigmas
TimestepSigmas = Callable[[Tensor, Tensor, int, SamplerSettings], Tensor]

DEFAULT_SETTINGS = SamplerSettings()
MAX_SIGMA_COUNT = 10_000  # float32 can distinguish so many levels
NOISE_SETTINGS = frozenset({"churn_noise"})
ANCESTRAL_SETTINGS = NOISE_SETTINGS | {"eta"}
CHURN_SETTINGS = NOISE_SETTINGS | {"churn", "churn_from", "churn_to"}
SCHEDULE_SETTINGS = frozenset({"scheduler", "sigma_min", "sigma_max", "rho", "discards_penultimate", "sgm_noise"})
COMMON_SETTINGS = frozenset({"quantised", "noise_multiplier", "extra_noise"})


@dataclass(frozen=True)
class Sampler:
    """A sampler.

    Attributes:
        name: Its name in A1111.
        function: Takes the steps.
        supported_settings: Names of the settings that it uses, beyond those of its noise schedule.
        scheduler: The noise schedule if none is asked for, as in A1111 before 1.9.
        automatic_scheduler: The noise schedule for "Automatic", the default of A1111 since 1.9.
        eta: Amount of new noise in ancestral steps, unless it is set.
        calls_per_step: Calls of the model per step, by which A1111 times prompt editing.
        discards_penultimate: Leave out the last noise level but one.
        draws_noise: When it draws from the pictures' generators after the first noise: "always", "never", or if the
            setting of this name is above 0.
        uses_ensd: True if A1111 records ENSD for it.
        depends_on_batch: True if the steps depend on all pictures of a batch.
        timestep_interval: Use only every so-many-th noise level of the model.
        timestep_sigmas: Computes the noise levels from timesteps, instead of a noise schedule. The latents of such a
            sampler have variance 1 at the start and the end, as in DDIM.
    """

    name: str
    function: SamplerFunction
    supported_settings: frozenset[str] = frozenset()
    scheduler: str = "Uniform"
    automatic_scheduler: str = "Uniform"
    eta: float = 1.0
    calls_per_step: int = 1
    discards_penultimate: bool = False
    draws_noise: Literal["never", "eta", "churn", "always"] = "never"
    uses_ensd: bool = False
    depends_on_batch: bool = False
    timestep_interval: int = 1
    timestep_sigmas: TimestepSigmas | None = None

    def trajectory(
        self,
        schedule: NoiseSchedule,
        steps: int,
        settings: SamplerSettings = DEFAULT_SETTINGS,
        *,
        img2img: Img2ImgSteps | None = None,
        family: str = "SD1",
    ) -> Trajectory:
        """Compute the noise levels and everything else that the steps depend on.

        Warns of settings that the sampler or the scheduler ignores.

        Args:
            schedule: The noise schedule that the model was trained with.
            steps: Number of steps of the whole schedule.
            settings: The settings; the defaults are those of A1111.
            img2img: The part of the schedule to take. None: all of it.
            family: Name of the base's family, for schedulers with a table for each.

        Raises:
            UnknownName: No such scheduler exists.
            BadRecipe: The settings give no decreasing noise levels.
        """
        _warn_of_unused(self.name, settings, SamplerSettings.model_fields.keys() - self._used_settings(settings))
        base_sigmas = compute_model_sigmas(schedule)
        if self.timestep_sigmas is not None:
            return self._timestep_trajectory(self.timestep_sigmas, base_sigmas, steps, settings, img2img)
        timesteps = torch.arange(self.timestep_interval - 1, len(base_sigmas), self.timestep_interval)
        model_sigmas = base_sigmas[timesteps]
        full_sigmas = self._sigmas(model_sigmas, _schedule_steps(steps, img2img), settings, family)
        sigmas = full_sigmas[max(len(full_sigmas) - img2img.t_enc - 2, 0) :] if img2img else full_sigmas
        return Trajectory(
            sigmas,
            model_sigmas,
            timesteps,
            sigma_min=float(full_sigmas[full_sigmas > 0].min()),
            sigma_max=float(full_sigmas.max()),
            settings=settings,
            eta=self._eta(settings),
            init_noise_sigma=_init_noise_sigma(float(sigmas[0]), settings, is_img2img=img2img is not None),
            is_quantised=settings.quantised or self.timestep_interval > 1,
        )

    def sample(
        self, denoise: Denoiser, noise: NoiseSource, trajectory: Trajectory, latents: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Denoise new noise, and yield the latents after each step.

        Args:
            denoise: Estimates clean latents.
            noise: The source of the first noise and of all later noise.
            trajectory: The noise levels.
            latents: The latents of an init image, to which the first noise is added, (pictures, 4, height, width).
        """
        initial_latents = trajectory.initial_latents(noise.draw(), latents)
        for step_latents in self.function(denoise, initial_latents, trajectory, noise):
            yield step_latents / trajectory.final_divisor

    def draws_later_noise(self, settings: SamplerSettings) -> bool:
        """Return True if noise is drawn from the pictures' generators after the first, so that ENSD has an effect."""
        noise_amount = {"never": 0.0, "eta": self._eta(settings), "churn": settings.churn, "always": 1.0}
        return noise_amount[self.draws_noise] > 0

    def _timestep_trajectory(
        self,
        timestep_sigmas: TimestepSigmas,
        base_sigmas: Tensor,
        steps: int,
        settings: SamplerSettings,
        img2img: Img2ImgSteps | None,
    ) -> Trajectory:
        """Compute the trajectory of a sampler that has its own timesteps.

        For img2img, the noise is that of the timestep above the first one, as in A1111.
        """
        timesteps = ddim_timesteps(len(base_sigmas), _schedule_steps(steps, img2img))
        remaining = min(max(img2img.t_enc, 2), len(timesteps)) if img2img else len(timesteps)
        start_timestep = int(timesteps[remaining - 1]) if img2img else len(base_sigmas) - 1
        sigmas = timestep_sigmas(base_sigmas, timesteps[:remaining], start_timestep, settings)
        init_latents_factor, init_noise_sigma = 1.0, _latents_std(sigmas[0])
        if img2img:
            start_sigma = base_sigmas[timesteps[min(max(img2img.t_enc, 1), len(timesteps) - 1)]]
            init_latents_factor = _latents_std(sigmas[0]) / _latents_std(start_sigma)
            init_noise_sigma = init_latents_factor * _init_noise_sigma(float(start_sigma), settings, is_img2img=True)
        return Trajectory(
            sigmas,
            base_sigmas,
            torch.arange(len(base_sigmas)),
            sigma_min=float(sigmas[-1]),
            sigma_max=float(sigmas[0]),
            settings=settings,
            eta=self._eta(settings),
            init_noise_sigma=init_noise_sigma,
            init_latents_factor=init_latents_factor,
            final_divisor=_latents_std(sigmas[-1]),
            is_quantised=settings.quantised,
        )

    def _used_settings(self, settings: SamplerSettings) -> Set[str]:
        """Return the names of the settings that the sampler uses, given that some depend on others."""
        used = self.supported_settings | COMMON_SETTINGS
        if self.timestep_sigmas is None:
            return used | SCHEDULE_SETTINGS
        # a sampler with its own timesteps accepts the scheduler "Automatic", and no other
        is_automatic = settings.scheduler is None or find_scheduler(settings.scheduler) == AUTOMATIC_SCHEDULER
        return used | {"scheduler"} if is_automatic else used

    def _eta(self, settings: SamplerSettings) -> float:
        return self.eta if settings.eta is None else settings.eta

    def _sigmas(self, model_sigmas: Tensor, steps: int, settings: SamplerSettings, family: str) -> Tensor:
        """Return all noise levels; if the last but one is discarded, one more is computed."""
        requested = self.scheduler if settings.scheduler is None else find_scheduler(settings.scheduler)
        name = self.automatic_scheduler if requested == AUTOMATIC_SCHEDULER else requested
        if name in FIXED_RANGE_SCHEDULERS:
            _warn_of_unused(name, settings, frozenset({"sigma_min", "sigma_max"}))
        if name not in RHO_SCHEDULERS:
            _warn_of_unused(name, settings, frozenset({"rho"}))
        scheduler = SCHEDULERS[name]
        sigma_range = SigmaRange.of(model_sigmas, settings.sigma_min, settings.sigma_max, settings.rho or None, family)
        discards_penultimate = self.discards_penultimate or settings.discards_penultimate
        sigmas = scheduler(sigma_range, steps + 1 if discards_penultimate else steps)
        if not ((sigmas[:-1] > 0).all() and (sigmas.diff() < 0).all() and sigmas.isfinite().all()):
            raise BadRecipe(
                f"{name} gives no decreasing noise levels from {sigma_range.sigma_max:g} to {sigma_range.sigma_min:g}: "
                "set sigma_min below sigma_max and rho near 7, or leave them out"
            )
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discards_penultimate else sigmas


def ddim_timesteps(timestep_count: int, steps: int) -> Tensor:
    """Return every n-th timestep from the second on, the cleanest first.

    The steps end at the first of them, not at 0, as in A1111 since 1.6: there 8 steps of DDIM call the model 7 times. A
    single step, which would not call it at all, goes from the noisiest timestep to the cleanest.
    """
    interval = timestep_count // min(max(steps, 1), timestep_count // 2)
    timesteps = torch.arange(1, timestep_count + 1, interval).clamp(max=timestep_count - 1)
    return timesteps if len(timesteps) > 1 else torch.tensor([1, timestep_count - 1])


def _warn_of_unused(owner: str, settings: SamplerSettings, unsupported: Set[str]) -> None:
    """Warn of settings that a sampler or scheduler ignores."""
    fields = SamplerSettings.model_fields
    unused = [name for name in fields if name in unsupported and getattr(settings, name) != fields[name].default]
    if unused:
        warn(f"{owner} does not use {', '.join(unused)}: setting it changes nothing")


def _schedule_steps(steps: int, img2img: Img2ImgSteps | None) -> int:
    """Return the steps of the whole schedule; for a denoising of 0 they are as many as possible."""
    return min(img2img.schedule_steps or MAX_SIGMA_COUNT, MAX_SIGMA_COUNT) if img2img else steps


def _init_noise_sigma(sigma: float, settings: SamplerSettings, *, is_img2img: bool) -> float:
    """Return the standard deviation of the first noise, for a trajectory that starts at sigma."""
    if is_img2img:
        return settings.noise_multiplier * (sigma + settings.extra_noise)
    return math.hypot(1, sigma) if settings.sgm_noise else sigma


def _latents_std(sigma: Tensor) -> float:
    """Return the standard deviation of latents of variance 1 with noise of sigma added."""
    return math.hypot(1, float(sigma))
