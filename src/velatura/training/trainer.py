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
from velatura.errors import BadPlan, TrainingDiverged
from velatura.overlays.overlay import Overlay
from velatura.sampling.generate import Picture, generate_many
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.data.buckets import draw_bucket_batch
from velatura.training.data.cache import DatasetCache
from velatura.training.data.captions import caption_name
from velatura.training.loss import create_huber_loss, create_loss_weighting, denoising_loss
from velatura.training.noise import derive_seed, draw_batch
from velatura.training.optimizers import has_training_mode, is_finite_step, set_training_mode
from velatura.training.plan import Plan
from velatura.training.precision import base_autocast
from velatura.training.processes import Team, move_to_device
from velatura.training.run.snapshots import Snapshot
from velatura.training.validation import ValidationSet, is_noise


@dataclass
class Trainer:
    """An overlay on the base that it lies over, with the pictures that it learns from and the plan that it learns by.

    is_moving is true while its weights change: what breaks a step off then leaves them between two steps. average is
    that of the weights, where the plan has one; raw are the weights as they learn, while it rests with others. team:
    the processes that learn the same, each of a part of every batch.
    """

    base: Base
    overlay: Overlay
    optimizer: Optimizer
    cache: DatasetCache
    plan: Plan
    team: Team = field(default_factory=Team)
    is_updating_weights: bool = field(default=False, init=False)
    ema: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False)
    training_weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False)

    def __post_init__(self) -> None:
        """Begin the average with the weights as they are."""
        if self.plan.ema:
            self.ema = {name: weight.detach().clone() for name, weight in self.overlay.trainable_parameters.items()}

    def training_step(self, step: int, rate: float, part_rates: Mapping[str, float] | None = None) -> float:
        """Take a step and return its loss; raises Diverged, with the overlay as it was, where that is no number.

        others: the rates of parts that have their own.
        """
        self.team.call("training_step", step, rate, part_rates)
        loss = self.team.mean(lambda: self._backward(step), self.overlay.trainable_parameters.values())
        grad_norm = clip_grad_norm_(self.overlay.trainable_parameters.values(), self.plan.gradient_norm or math.inf)
        if not (loss.isfinite() and grad_norm.isfinite()):
            raise TrainingDiverged(
                f"the loss is no number any more at step {step + 1}, at a rate of {rate:g}; lower the rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = (part_rates or {}).get(group.get("part", ""), rate)
        self.is_updating_weights = True
        self._optimizer_step(step, rate)
        self._update_ema(step + 1)
        self.is_updating_weights = False
        return loss.item()

    def _backward(self, step: int) -> Tensor:
        """Find the gradients of a step's batches, and the loss."""
        team, accumulation, loss = self.team, self.plan.accumulation, torch.zeros(())
        dropout_seed = derive_seed(self.plan.seed, "dropout", step * team.size + team.rank)
        torch.manual_seed(dropout_seed)  # pyright: ignore[reportUnknownMemberType]
        self.optimizer.zero_grad()
        for batch_index in range(step * accumulation, (step + 1) * accumulation):
            for weight, cache, seed in self._loss_terms():
                scaled_loss = weight * self._loss(cache, seed, batch_index) / accumulation
                if (
                    scaled_loss.requires_grad
                ):  # an embedding whose name is in no caption of a batch learns nothing of it
                    torch.autograd.backward(scaled_loss)  # before the next lesson, so that memory is that of one
                loss = loss + scaled_loss.detach().cpu()
        return loss

    def check_captions(self) -> None:
        """Refuse captions in which what only acts where it is called by its name never is."""
        parts = {name: self.overlay.part_of(name) for name in self.overlay.trainable_parameters}
        word_vectors = [weight for name, weight in self.overlay.trainable_parameters.items() if parts[name] == "words"]
        if not word_vectors and "unet" not in self.overlay.target_parts:
            word_vectors = [*self.overlay.trainable_parameters.values()]
        rows = [
            (bucket.captions, picture)
            for bucket in self.cache.buckets
            for picture in range(bucket.captions.picture_count)
        ]
        if word_vectors and not any(captions.is_affected_by(word_vectors, picture) for captions, picture in rows):
            name = caption_name(self.overlay)
            raise BadPlan(
                f"no caption says {name!r}, so it would learn nothing: plan a template with [name] in it, "
                f'as style_filewords or subject_filewords, or write "{name}" into the captions'
            )

    def validate(self, validation_set: ValidationSet) -> float:
        """The validation loss of what was learned so far, at full strength."""
        with self.evaluation_mode():
            return validation_set.loss(self.base)

    def generate_previews(self, recipes: Iterable[Recipe]) -> list[Picture]:
        """Make pictures with what was learned so far, at full strength."""
        with self.evaluation_mode():
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
            state = snapshot.overlay().state_dict()
            self.ema = {name: state[name].to(weight) for name, weight in self.overlay.trainable_parameters.items()}
        self.broadcast()

    def broadcast(self) -> None:
        """Let all processes be as the one that leads them is."""
        if not self.team.is_alone:
            weights = {name: tensor.detach() for name, tensor in self.overlay.state_dict().items()}
            self.team.call(
                "load_state", move_to_device((weights, self.optimizer.state_dict(), self.ema), torch.device("cpu"))
            )

    @torch.no_grad()
    def load_state(self, state: tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]) -> None:
        """Be as another process is."""
        weights, optimizer, ema = state
        for name, weight in self.overlay.state_dict(keep_vars=True).items():
            weight.detach().copy_(weights[name])
        self.optimizer.load_state_dict(optimizer)
        self.ema = move_to_device(ema, self.base.device)

    @contextmanager
    def evaluation_mode(self) -> Generator[None]:
        """The overlay as it is used, not as it learns: with its average, and without dropout."""
        self.overlay.eval()
        if self.ema or has_training_mode(self.optimizer):  # else no copy of what may be as large as the base
            self.training_weights = {
                name: weight.detach().clone() for name, weight in self.overlay.trainable_parameters.items()
            }
        set_training_mode(self.optimizer, is_training=False)
        self._copy_weights(self.ema)
        try:
            yield
        finally:
            set_training_mode(self.optimizer, is_training=True)
            self._copy_weights(self.training_weights)  # the way back from the one to the other is not exact
            self.training_weights = {}
            self.overlay.train()

    def finalize_weights(self) -> None:
        """Be for good as it is used, at the end."""
        set_training_mode(self.optimizer, is_training=False)
        self._copy_weights(self.ema)

    @torch.no_grad()
    def _copy_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self.overlay.trainable_parameters.items():
            if name in weights:
                weight.copy_(weights[name])

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        """Take a step into the average; the first ones more, as it begins with weights that know nothing."""
        if not self.plan.ema:
            return
        decay = min(self.plan.ema, (1 + step) / (10 + step))  # as TensorFlow's ExponentialMovingAverage
        for name, weight in self.overlay.trainable_parameters.items():
            self.ema[name].lerp_(weight.detach(), 1 - decay)

    @torch.no_grad()
    def _optimizer_step(self, step: int, rate: float) -> None:
        """Let the optimizer take its step, or undo it and raise Diverged where it led to weights that are no numbers.

        A gradient may be finite and the step along it not: a rate can be too large for float32.
        """
        is_safe = is_finite_step(self.plan.optimizer, self.optimizer, list(self.overlay.trainable_parameters.values()))
        backup = [] if is_safe else [tensor.clone() for tensor in self._mutable_tensors()]
        self.optimizer.step()
        torch.autograd.graph.increment_version(
            [*self.overlay.trainable_parameters.values()]
        )  # which a fused step does not
        if is_safe or all(weight.isfinite().all() for weight in self.overlay.parameters()):
            self.overlay.after_step()
            return
        for tensor, old in zip(self._mutable_tensors(), backup, strict=False):  # the first step adds moments
            tensor.copy_(old)
        self.is_updating_weights = False
        raise TrainingDiverged(
            f"the weights are no numbers any more at step {step + 1}, at a rate of {rate:g}; lower the rate"
        )

    def _mutable_tensors(self) -> list[Tensor]:
        """All that the optimizer changes: the overlay's weights, then its own moments of them."""
        states: Iterable[Mapping[str, object]] = self.optimizer.state.values()
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [*self.overlay.trainable_parameters.values(), *moments]

    def _loss_terms(self) -> Iterator[tuple[float, DatasetCache, int]]:
        """What a batch is taken from, with its share in the loss and the seed of its chance.

        Where there are class pictures, as many of them as of the others make the other half of the loss's mean.
        """
        class_images, seed = self.cache.class_images, self.plan.seed
        yield 0.5 if class_images else 1.0, self.cache, seed
        if class_images:
            yield self.plan.class_weight / 2, class_images, derive_seed(seed, "class pictures", 0)

    def _loss(self, cache: DatasetCache, seed: int, batch_index: int) -> Tensor:
        batch_size, pictures = self.plan.batch_size * self.team.size, None
        if cache.other_buckets:
            bucket_index, pictures = draw_bucket_batch(
                seed, batch_index, [len(bucket.latents) for bucket in cache.buckets], batch_size
            )
            cache = cache.buckets[bucket_index]
        latents = cache.latents
        batch = draw_batch(
            seed,
            batch_index,
            batch_size=batch_size,
            pictures=pictures,
            picture_count=len(latents),
            latent_shape=latents.shape[1:],
            timestep_count=len(self.base.schedule),
            caption_dropout=self.plan.caption_dropout,
            noise_offset=self.plan.noise_offset,
            pyramid_noise=self.plan.pyramid_noise,
            input_perturbation=self.plan.input_perturbation,
        ).select_rows(self.team.rows(self.plan.batch_size))
        indices, noise = batch.pictures.to(latents.device), batch.noise.to(latents.device)
        cond = cache.captions.encode_batch(batch.pictures, batch.captionless, seed, batch.offset)
        weights = None if cache.weights is None else cache.weights[indices]
        input_noise = None if batch.input_noise is None else batch.input_noise.to(latents.device)
        with base_autocast(self.base):
            return denoising_loss(
                *(self.base, cache.draw_latents(indices, seed, batch.offset), cond, noise, batch.timesteps),
                input_noise=input_noise,
                weighting=create_loss_weighting(self.plan),
                huber=create_huber_loss(self.plan),
                weights=weights,
            )
