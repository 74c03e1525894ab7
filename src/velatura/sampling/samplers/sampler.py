"""A way from noise to a picture: how it walks, between which levels, and what of it may be set."""

import math
import warnings
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from velatura.base.noise_schedule import NoiseSchedule
from velatura.errors import BadRecipe, VelaturaWarning
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

# (all levels, the timesteps that are left, the one to start from, settings) -> sigmas
TimestepSigmas = Callable[[Tensor, Tensor, int, SamplerSettings], Tensor]

DEFAULT_SETTINGS = SamplerSettings()
MAX_SIGMA_COUNT = 10_000  # that float32 tells apart
NOISE_SETTINGS = frozenset({"churn_noise"})
ANCESTRAL_SETTINGS = NOISE_SETTINGS | {"eta"}
CHURN_SETTINGS = NOISE_SETTINGS | {"churn", "churn_from", "churn_to"}
SCHEDULE_SETTINGS = frozenset({"scheduler", "sigma_min", "sigma_max", "rho", "discards_penultimate", "sgm_noise"})
COMMON_SETTINGS = frozenset({"quantised", "noise_multiplier", "extra_noise"})


@dataclass(frozen=True)
class Sampler:
    """A way to walk from noise to clean latents.

    heeds: the settings that it follows, beyond those of the levels' spacing. scheduler: of its levels when none is
    asked for, as the webui had it until 1.8; automatic: its choice since. eta: of its ancestral steps unless set.
    calls_per_step: of the model, by which the webui counts a prompt's changes. discards: whether the last level but
    one is left out. draws: when it draws from the pictures' generators on the way: always, never, or where a setting is
    above 0. reads_ensd: whether the webui writes the ENSD of its pictures down. reads_batch: whether its steps
    depend on all pictures of a batch. stride: it walks along every so-manieth of the base's levels only. ladder: its
    levels are its own, found from timesteps; its latents start and end with picture and noise of variance 1 together.
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
        """Lay a walk out: from noise alone, or the part of it that an image to begin from leaves.

        family: the base's, for schedulers that were found for one.
        """
        is_automatic = settings.scheduler is None or find_scheduler(settings.scheduler) == AUTOMATIC_SCHEDULER
        schedule_settings = (
            SCHEDULE_SETTINGS if self.timestep_sigmas is None else frozenset({"scheduler"} if is_automatic else ())
        )
        _warn_of_unused(
            self.name,
            settings,
            SamplerSettings.model_fields.keys() - (self.supported_settings | COMMON_SETTINGS | schedule_settings),
        )
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
        """Walk from fresh noise, over an image's latents where there are any, and yield the latents after each step."""
        for step_latents in self.function(
            denoise, trajectory.initial_latents(noise.draw(), latents), trajectory, noise
        ):
            yield step_latents / trajectory.final_divisor

    def draws_later_noise(self, settings: SamplerSettings) -> bool:
        """Whether noise is drawn from the pictures' generators after the first, so that ENSD changes something."""
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
        """A walk along timesteps; an image is made as noisy as the one above those that are left, as the webui does."""
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

    def _eta(self, settings: SamplerSettings) -> float:
        return self.eta if settings.eta is None else settings.eta

    def _sigmas(self, model_sigmas: Tensor, steps: int, settings: SamplerSettings, family: str) -> Tensor:
        """The levels of a whole walk; those who discard the last but one lay one more."""
        requested = self.scheduler if settings.scheduler is None else find_scheduler(settings.scheduler)
        name = self.automatic_scheduler if requested == AUTOMATIC_SCHEDULER else requested
        _warn_of_unused(
            name, settings, frozenset({"sigma_min", "sigma_max"}) if name in FIXED_RANGE_SCHEDULERS else frozenset()
        )
        _warn_of_unused(name, settings, frozenset() if name in RHO_SCHEDULERS else frozenset({"rho"}))
        scheduler = SCHEDULERS[name]
        sigma_range = SigmaRange.of(model_sigmas, settings.sigma_min, settings.sigma_max, settings.rho or None, family)
        discards_penultimate = self.discards_penultimate or settings.discards_penultimate
        sigmas = scheduler(sigma_range, steps + 1 if discards_penultimate else steps)
        if not ((sigmas[:-1] > 0).all() and (sigmas.diff() < 0).all() and sigmas.isfinite().all()):
            raise BadRecipe(
                f"{name} lays no levels down from {sigma_range.sigma_max:g} to {sigma_range.sigma_min:g}: "
                "set sigma_min below sigma_max, and rho near 7, or leave them out"
            )
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discards_penultimate else sigmas


def ddim_timesteps(timestep_count: int, steps: int) -> Tensor:
    """Every n-th timestep from the second on, cleanest first.

    The walk ends at the first of them, not at 0. So it is in A1111 since 1.6, where 8 steps of DDIM call the model 7
    times; a single step, which would then call it never, goes from the noisiest timestep to the cleanest.
    """
    timesteps = torch.arange(1, timestep_count + 1, timestep_count // min(max(steps, 1), timestep_count // 2)).clamp(
        max=timestep_count - 1
    )
    return timesteps if len(timesteps) > 1 else torch.tensor([1, timestep_count - 1])


def _warn_of_unused(owner: str, settings: SamplerSettings, unsupported: Set[str]) -> None:
    """Say what is set that a sampler or a scheduler does not heed."""
    fields = SamplerSettings.model_fields
    unused = [name for name in fields if name in unsupported and getattr(settings, name) != fields[name].default]
    if unused:
        warnings.warn(f"{owner} has no {', '.join(unused)}: what is set there changes nothing", VelaturaWarning, 4)


def _schedule_steps(steps: int, img2img: Img2ImgSteps | None) -> int:
    """How many levels a whole walk has; an image that is hardly changed is begun at the cleanest of very many."""
    return min(img2img.schedule_steps or MAX_SIGMA_COUNT, MAX_SIGMA_COUNT) if img2img else steps


def _init_noise_sigma(sigma: float, settings: SamplerSettings, *, is_img2img: bool) -> float:
    """How strong the noise is that a walk starts with at a level, over an image's latents where it is begun."""
    if is_img2img:
        return settings.noise_multiplier * (sigma + settings.extra_noise)
    return math.hypot(1, sigma) if settings.sgm_noise else sigma


def _latents_std(sigma: Tensor) -> float:
    """How much wider latents with so much noise are spread than those of variance 1."""
    return math.hypot(1, float(sigma))
