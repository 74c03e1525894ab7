"""An overlay at its lessons, a step at a time."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from velatura.base.base import Base
from velatura.errors import Diverged
from velatura.overlays.overlay import Overlay
from velatura.sampling.generate import Picture, generate
from velatura.training.cache import Cache
from velatura.training.chance import draw, seed_of
from velatura.training.objective import denoising_loss
from velatura.training.plan import Plan
from velatura.training.precision import products_in
from velatura.training.validation import Examination, is_noise


@dataclass
class Pupil:
    """An overlay on the base that it lies over, with the pictures that it learns from and the plan that it learns by.

    is_moving is true while its weights change: what breaks a step off then leaves them between two steps.
    """

    base: Base
    overlay: Overlay
    optimizer: Optimizer
    cache: Cache
    plan: Plan
    is_moving: bool = field(default=False, init=False)

    def learn(self, done: int, rate: float) -> float:
        """Take a step and return its loss; raises Diverged, with the overlay as it was, where that is no number."""
        torch.manual_seed(seed_of(self.plan.seed, "dropout", done))  # pyright: ignore[reportUnknownMemberType]
        self.optimizer.zero_grad()
        loss = self._loss(done)
        torch.autograd.backward(loss)
        length = clip_grad_norm_(self.overlay.parameters(), self.plan.gradient_norm or math.inf)
        if not (loss.isfinite() and length.isfinite()):
            raise Diverged(f"the loss is no number any more at step {done + 1}, at a rate of {rate:g}; lower the rate")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.is_moving = True
        self._move(done, rate)
        self.is_moving = False
        return loss.item()

    def examine(self, examination: Examination) -> float:
        """The validation loss of what was learned so far, at full strength."""
        with self.resting():
            return examination.loss(self.base)

    def show(self, prompt: str) -> Picture:
        """Make a picture with what was learned so far, at full strength."""
        with self.resting():
            return generate(self.base, prompt, seed=self.plan.seed)

    def is_noise(self, picture: Picture) -> bool:
        """Whether a picture is rougher than any of those that are learned from."""
        pixels = torch.tensor(np.asarray(picture.image, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            return is_noise(self.base.encode(pixels.to(self.base.device)), self.cache.latents)

    @contextmanager
    def resting(self) -> Generator[None]:
        """The overlay as it is used, not as it learns."""
        self.overlay.eval()
        try:
            yield
        finally:
            self.overlay.train()

    @torch.no_grad()
    def _move(self, done: int, rate: float) -> None:
        """Let the optimizer take its step, or undo it and raise Diverged where it led to weights that are no numbers.

        A gradient may be finite and the step along it not: a rate can be too large for float32.
        """
        before = [tensor.clone() for tensor in self._tensors()]
        self.optimizer.step()
        if all(weight.isfinite().all() for weight in self.overlay.parameters()):
            return
        for tensor, old in zip(self._tensors(), before, strict=False):  # the first step adds moments
            tensor.copy_(old)
        self.is_moving = False
        raise Diverged(f"the weights are no numbers any more at step {done + 1}, at a rate of {rate:g}; lower the rate")

    def _tensors(self) -> list[Tensor]:
        """All that the optimizer changes: the overlay's weights, then its own moments of them."""
        states: Iterable[Mapping[str, object]] = self.optimizer.state.values()
        moments = [each for state in states for each in state.values() if isinstance(each, Tensor)]
        return [*self.overlay.parameters(), *moments]

    def _loss(self, done: int) -> Tensor:
        latents = self.cache.latents
        chance = draw(
            self.plan.seed,
            done,
            batch_size=self.plan.batch_size,
            picture_count=len(latents),
            latent_shape=latents.shape[1:],
            timestep_count=len(self.base.schedule),
            caption_dropout=self.plan.caption_dropout,
        )
        chosen, noise = chance.pictures.to(latents.device), chance.noise.to(latents.device)
        captionless = chance.captionless.to(latents.device)
        said = self.cache.said.rows(torch.where(captionless, len(latents), chosen))
        with products_in(self.base):
            return denoising_loss(self.base, latents[chosen], said, noise, chance.timesteps, min_snr=self.plan.min_snr)
