"""An overlay at its lessons, a step at a time."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from velatura.base.base import Base
from velatura.errors import BadPlan, Diverged
from velatura.overlays.overlay import Overlay
from velatura.sampling.generate import Picture, generate_many
from velatura.sampling.recipe import Recipe
from velatura.training.buckets import batch_at
from velatura.training.cache import Cache
from velatura.training.chance import draw, seed_of
from velatura.training.moving import stays_finite
from velatura.training.objective import denoising_loss
from velatura.training.optimizers import has_two, set_learning
from velatura.training.plan import Plan
from velatura.training.precision import products_in
from velatura.training.predicting import huber_of, weighing_of
from velatura.training.processes import Team, moved
from velatura.training.snapshots import Snapshot
from velatura.training.speech import name_of
from velatura.training.validation import Examination, is_noise


@dataclass
class Pupil:
    """An overlay on the base that it lies over, with the pictures that it learns from and the plan that it learns by.

    is_moving is true while its weights change: what breaks a step off then leaves them between two steps. average is
    that of the weights, where the plan has one; raw are the weights as they learn, while it rests with others. team:
    the processes that learn the same, each of a part of every batch.
    """

    base: Base
    overlay: Overlay
    optimizer: Optimizer
    cache: Cache
    plan: Plan
    team: Team = field(default_factory=Team)
    is_moving: bool = field(default=False, init=False)
    average: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False)
    raw: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False)

    def __post_init__(self) -> None:
        """Begin the average with the weights as they are."""
        if self.plan.ema:
            self.average = {name: weight.detach().clone() for name, weight in self.overlay.learned.items()}

    def learn(self, done: int, rate: float, others: Mapping[str, float] | None = None) -> float:
        """Take a step and return its loss; raises Diverged, with the overlay as it was, where that is no number.

        others: the rates of parts that have their own.
        """
        self.team.call("learn", done, rate, others)
        loss = self.team.mean(lambda: self._backward(done), self.overlay.learned.values())
        length = clip_grad_norm_(self.overlay.learned.values(), self.plan.gradient_norm or math.inf)
        if not (loss.isfinite() and length.isfinite()):
            raise Diverged(f"the loss is no number any more at step {done + 1}, at a rate of {rate:g}; lower the rate")
        for group in self.optimizer.param_groups:
            group["lr"] = (others or {}).get(group.get("part", ""), rate)
        self.is_moving = True
        self._move(done, rate)
        self._average(done + 1)
        self.is_moving = False
        return loss.item()

    def _backward(self, done: int) -> Tensor:
        """Find the gradients of a step's batches, and the loss."""
        team, parts, loss = self.team, self.plan.accumulation, torch.zeros(())
        own_seed = seed_of(self.plan.seed, "dropout", done * team.size + team.rank)
        torch.manual_seed(own_seed)  # pyright: ignore[reportUnknownMemberType]
        self.optimizer.zero_grad()
        for part in range(done * parts, (done + 1) * parts):
            for share, cache, seed in self._lessons():
                of_part = share * self._loss(cache, seed, part) / parts
                if of_part.requires_grad:  # an embedding whose name is in no caption of a batch learns nothing of it
                    torch.autograd.backward(of_part)  # before the next lesson, so that memory is that of one
                loss = loss + of_part.detach().cpu()
        return loss

    def refuse_unheard(self) -> None:
        """Refuse captions in which what only acts where it is called by its name never is."""
        parts = {name: self.overlay.part_of(name) for name in self.overlay.learned}
        called = [each for name, each in self.overlay.learned.items() if parts[name] == "words"]
        if not called and "unet" not in self.overlay.touches:
            called = [*self.overlay.learned.values()]
        speeches = [(cache.speech, picture) for cache in self.cache.sizes for picture in range(cache.speech.count)]
        if called and not any(speech.hears(called, picture) for speech, picture in speeches):
            name = name_of(self.overlay)
            raise BadPlan(
                f"no caption says {name!r}, so it would learn nothing: plan a template with [name] in it, "
                f'as style_filewords or subject_filewords, or write "{name}" into the captions'
            )

    def examine(self, examination: Examination) -> float:
        """The validation loss of what was learned so far, at full strength."""
        with self.resting():
            return examination.loss(self.base)

    def show(self, recipes: Iterable[Recipe]) -> list[Picture]:
        """Make pictures with what was learned so far, at full strength."""
        with self.resting():
            return generate_many(self.base, recipes)

    def is_noise(self, picture: Picture) -> bool:
        """Whether a picture is rougher than any of those that are learned from."""
        pixels = torch.tensor(np.asarray(picture.image, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            return is_noise(self.base.encode(pixels.to(self.base.device)), self.cache.latents)

    def restore(self, snapshot: Snapshot) -> None:
        """Be as it was when a snapshot was made."""
        snapshot.restore(self.overlay, self.optimizer)
        if self.plan.ema:
            kept = snapshot.overlay().state_dict()
            self.average = {name: kept[name].to(each) for name, each in self.overlay.learned.items()}
        self.share()

    def share(self) -> None:
        """Let all processes be as the one that leads them is."""
        if not self.team.is_alone:
            weights = {name: each.detach() for name, each in self.overlay.state_dict().items()}
            self.team.call("take", moved((weights, self.optimizer.state_dict(), self.average), torch.device("cpu")))

    @torch.no_grad()
    def take(self, state: tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]) -> None:
        """Be as another process is."""
        weights, optimizer, average = state
        for name, weight in self.overlay.state_dict(keep_vars=True).items():
            weight.detach().copy_(weights[name])
        self.optimizer.load_state_dict(optimizer)
        self.average = moved(average, self.base.device)

    @contextmanager
    def resting(self) -> Generator[None]:
        """The overlay as it is used, not as it learns: with its average, and without dropout."""
        self.overlay.eval()
        if self.average or has_two(self.optimizer):  # else no copy of what may be as large as the base
            self.raw = {name: weight.detach().clone() for name, weight in self.overlay.learned.items()}
        set_learning(self.optimizer, learning=False)
        self._fill(self.average)
        try:
            yield
        finally:
            set_learning(self.optimizer, learning=True)
            self._fill(self.raw)  # the way back from the one to the other is not exact
            self.raw = {}
            self.overlay.train()

    def settle(self) -> None:
        """Be for good as it is used, at the end."""
        set_learning(self.optimizer, learning=False)
        self._fill(self.average)

    @torch.no_grad()
    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self.overlay.learned.items():
            if name in weights:
                weight.copy_(weights[name])

    @torch.no_grad()
    def _average(self, done: int) -> None:
        """Take a step into the average; the first ones more, as it begins with weights that know nothing."""
        if not self.plan.ema:
            return
        decay = min(self.plan.ema, (1 + done) / (10 + done))  # as TensorFlow's ExponentialMovingAverage
        for name, weight in self.overlay.learned.items():
            self.average[name].lerp_(weight.detach(), 1 - decay)

    @torch.no_grad()
    def _move(self, done: int, rate: float) -> None:
        """Let the optimizer take its step, or undo it and raise Diverged where it led to weights that are no numbers.

        A gradient may be finite and the step along it not: a rate can be too large for float32.
        """
        is_safe = stays_finite(self.plan.optimizer, self.optimizer, list(self.overlay.learned.values()))
        before = [] if is_safe else [tensor.clone() for tensor in self._tensors()]
        self.optimizer.step()
        torch.autograd.graph.increment_version([*self.overlay.learned.values()])  # which a fused step does not
        if is_safe or all(weight.isfinite().all() for weight in self.overlay.parameters()):
            self.overlay.after_step()
            return
        for tensor, old in zip(self._tensors(), before, strict=False):  # the first step adds moments
            tensor.copy_(old)
        self.is_moving = False
        raise Diverged(f"the weights are no numbers any more at step {done + 1}, at a rate of {rate:g}; lower the rate")

    def _tensors(self) -> list[Tensor]:
        """All that the optimizer changes: the overlay's weights, then its own moments of them."""
        states: Iterable[Mapping[str, object]] = self.optimizer.state.values()
        moments = [each for state in states for each in state.values() if isinstance(each, Tensor)]
        return [*self.overlay.learned.values(), *moments]

    def _lessons(self) -> Iterator[tuple[float, Cache, int]]:
        """What a batch is taken from, with its share in the loss and the seed of its chance.

        Where there are class pictures, as many of them as of the others make the other half of the loss's mean.
        """
        classes, seed = self.cache.classes, self.plan.seed
        yield 0.5 if classes else 1.0, self.cache, seed
        if classes:
            yield self.plan.class_weight / 2, classes, seed_of(seed, "class pictures", 0)

    def _loss(self, cache: Cache, seed: int, done: int) -> Tensor:
        batch_size, pictures = self.plan.batch_size * self.team.size, None
        if cache.others:
            bucket, pictures = batch_at(seed, done, [len(each.latents) for each in cache.sizes], batch_size)
            cache = cache.sizes[bucket]
        latents = cache.latents
        chance = draw(
            seed,
            done,
            batch_size=batch_size,
            pictures=pictures,
            picture_count=len(latents),
            latent_shape=latents.shape[1:],
            timestep_count=len(self.base.schedule),
            caption_dropout=self.plan.caption_dropout,
            noise_offset=self.plan.noise_offset,
            pyramid_noise=self.plan.pyramid_noise,
            input_perturbation=self.plan.input_perturbation,
        ).part(self.team.rows(self.plan.batch_size))
        chosen, noise = chance.pictures.to(latents.device), chance.noise.to(latents.device)
        said = cache.speech.of(chance.pictures, chance.captionless, seed, chance.first)
        weights = None if cache.weights is None else cache.weights[chosen]
        mixed = None if chance.mixed is None else chance.mixed.to(latents.device)
        with products_in(self.base):
            return denoising_loss(
                *(self.base, cache.drawn(chosen, seed, chance.first), said, noise, chance.timesteps),
                mixed=mixed,
                weighing=weighing_of(self.plan),
                huber=huber_of(self.plan),
                weights=weights,
            )
