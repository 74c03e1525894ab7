"""A way from noise to a picture: how it walks, between which levels, and what of it may be set."""

import math
import warnings
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from velatura.base.schedule import Schedule
from velatura.errors import BadRecipe, VelaturaWarning
from velatura.sampling.samplers.course import Course, Denoise, Source, Walk
from velatura.sampling.schedules import (
    AUTOMATIC,
    HAS_ITS_ENDS,
    HEEDS_RHO,
    SCHEDULERS,
    Span,
    find_scheduler,
    trained_sigmas,
)
from velatura.sampling.settings import Settings
from velatura.sampling.sizes import Walked

# (all levels, the timesteps that are left, the one to start from, settings) -> sigmas
Ladder = Callable[[Tensor, Tensor, int, Settings], Tensor]

SETTINGS = Settings()
MOST_LEVELS = 10_000  # that float32 tells apart
STRENGTH = frozenset({"churn_noise"})
FRESH = STRENGTH | {"eta"}
CHURN = STRENGTH | {"churn", "churn_from", "churn_to"}
SPACING = frozenset({"scheduler", "sigma_min", "sigma_max", "rho", "discards_penultimate", "sgm_noise"})
ALWAYS = frozenset({"quantised", "noise_multiplier", "extra_noise"})


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
    walk: Walk
    heeds: frozenset[str] = frozenset()
    scheduler: str = "Uniform"
    automatic: str = "Uniform"
    eta: float = 1.0
    calls_per_step: int = 1
    discards: bool = False
    draws: Literal["never", "eta", "churn", "always"] = "never"
    reads_ensd: bool = False
    reads_batch: bool = False
    stride: int = 1
    ladder: Ladder | None = None

    def course(
        self,
        schedule: Schedule,
        steps: int,
        settings: Settings = SETTINGS,
        *,
        begun: Walked | None = None,
        family: str = "SD1",
    ) -> Course:
        """Lay a walk out: from noise alone, or the part of it that an image to begin from leaves.

        family: the base's, for schedulers that were found for one.
        """
        automatic = settings.scheduler is None or find_scheduler(settings.scheduler) == AUTOMATIC
        spacing = SPACING if self.ladder is None else frozenset({"scheduler"} if automatic else ())
        _warn_of(self.name, settings, Settings.model_fields.keys() - (self.heeds | ALWAYS | spacing))
        trained = trained_sigmas(schedule)
        if self.ladder is not None:
            return self._climb(self.ladder, trained, steps, settings, begun)
        times = torch.arange(self.stride - 1, len(trained), self.stride)
        known = trained[times]
        whole = self._sigmas(known, _level_count(steps, begun), settings, family)
        sigmas = whole[max(len(whole) - begun.left - 2, 0) :] if begun else whole
        return Course(
            sigmas,
            known,
            times,
            low=float(whole[whole > 0].min()),
            high=float(whole.max()),
            settings=settings,
            eta=self._eta(settings),
            noisy=_noisy(float(sigmas[0]), settings, begun=begun is not None),
            quantised=settings.quantised or self.stride > 1,
        )

    def sample(
        self, denoise: Denoise, noise: Source, course: Course, latents: Tensor | None = None
    ) -> Iterator[Tensor]:
        """Walk from fresh noise, over an image's latents where there are any, and yield the latents after each step."""
        for walked in self.walk(denoise, course.start(noise.draw(), latents), course, noise):
            yield walked / course.last

    def draws_more(self, settings: Settings) -> bool:
        """Whether noise is drawn from the pictures' generators after the first, so that ENSD changes something."""
        above = {"never": 0.0, "eta": self._eta(settings), "churn": settings.churn, "always": 1.0}
        return above[self.draws] > 0

    def _climb(self, ladder: Ladder, trained: Tensor, steps: int, settings: Settings, begun: Walked | None) -> Course:
        """A walk along timesteps; an image is made as noisy as the one above those that are left, as the webui does."""
        times = ddim_times(len(trained), _level_count(steps, begun))
        left = min(max(begun.left, 2), len(times)) if begun else len(times)
        first = int(times[left - 1]) if begun else len(trained) - 1
        sigmas = ladder(trained, times[:left], first, settings)
        clean, noisy = 1.0, _spread(sigmas[0])
        if begun:
            above = trained[times[min(max(begun.left, 1), len(times) - 1)]]
            clean = _spread(sigmas[0]) / _spread(above)
            noisy = clean * _noisy(float(above), settings, begun=True)
        return Course(
            sigmas,
            trained,
            torch.arange(len(trained)),
            low=float(sigmas[-1]),
            high=float(sigmas[0]),
            settings=settings,
            eta=self._eta(settings),
            noisy=noisy,
            clean=clean,
            last=_spread(sigmas[-1]),
            quantised=settings.quantised,
        )

    def _eta(self, settings: Settings) -> float:
        return self.eta if settings.eta is None else settings.eta

    def _sigmas(self, known: Tensor, steps: int, settings: Settings, family: str) -> Tensor:
        """The levels of a whole walk; those who discard the last but one lay one more."""
        asked = self.scheduler if settings.scheduler is None else find_scheduler(settings.scheduler)
        name = self.automatic if asked == AUTOMATIC else asked
        _warn_of(name, settings, frozenset({"sigma_min", "sigma_max"}) if name in HAS_ITS_ENDS else frozenset())
        _warn_of(name, settings, frozenset() if name in HEEDS_RHO else frozenset({"rho"}))
        laid = SCHEDULERS[name]
        span = Span.of(known, settings.sigma_min, settings.sigma_max, settings.rho or None, family)
        discards = self.discards or settings.discards_penultimate
        sigmas = laid(span, steps + 1 if discards else steps)
        if not ((sigmas[:-1] > 0).all() and (sigmas.diff() < 0).all() and sigmas.isfinite().all()):
            raise BadRecipe(
                f"{name} lays no levels down from {span.high:g} to {span.low:g}: "
                "set sigma_min below sigma_max, and rho near 7, or leave them out"
            )
        return torch.cat([sigmas[:-2], sigmas[-1:]]) if discards else sigmas


def ddim_times(count: int, steps: int) -> Tensor:
    """Every n-th timestep from the second on, cleanest first.

    The walk ends at the first of them, not at 0. So it is in A1111 since 1.6, where 8 steps of DDIM call the model 7
    times; a single step, which would then call it never, goes from the noisiest timestep to the cleanest.
    """
    times = torch.arange(1, count + 1, count // min(max(steps, 1), count // 2)).clamp(max=count - 1)
    return times if len(times) > 1 else torch.tensor([1, count - 1])


def _warn_of(what: str, settings: Settings, unheeded: Set[str]) -> None:
    """Say what is set that a sampler or a scheduler does not heed."""
    fields = Settings.model_fields
    idle = [name for name in fields if name in unheeded and getattr(settings, name) != fields[name].default]
    if idle:
        warnings.warn(f"{what} has no {', '.join(idle)}: what is set there changes nothing", VelaturaWarning, 4)


def _level_count(steps: int, begun: Walked | None) -> int:
    """How many levels a whole walk has; an image that is hardly changed is begun at the cleanest of very many."""
    return min(begun.levels or MOST_LEVELS, MOST_LEVELS) if begun else steps


def _noisy(sigma: float, settings: Settings, *, begun: bool) -> float:
    """How strong the noise is that a walk starts with at a level, over an image's latents where it is begun."""
    if begun:
        return settings.noise_multiplier * (sigma + settings.extra_noise)
    return math.hypot(1, sigma) if settings.sgm_noise else sigma


def _spread(sigma: Tensor) -> float:
    """How much wider latents with so much noise are spread than those of variance 1."""
    return math.hypot(1, float(sigma))
