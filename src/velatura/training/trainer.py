"""One training step of an overlay, and what goes with it: EMA, validation, previews, restoring a snapshot."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from velatura.base.base import Base
from velatura.errors import TrainingDiverged
from velatura.overlays.overlay import Overlay
from velatura.sampling.generate import Picture, make_pictures
from velatura.sampling.masks import InitImage
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.data.buckets import draw_bucket_batch
from velatura.training.data.cache import DatasetCache
from velatura.training.distributed import Processes, to_cpu
from velatura.training.loss import create_huber_loss, create_loss_weighting, denoising_errors
from velatura.training.noise import TrainingBatch, derive_seed, draw_batch
from velatura.training.optimizers import has_training_mode, is_finite_step, set_training_mode
from velatura.training.plan import Plan
from velatura.training.precision import base_autocast
from velatura.training.run.snapshots import Snapshot
from velatura.training.validation import ValidationLoss, ValidationSet, is_noise


class LossTerm(NamedTuple):
    """One term of the loss: encoded pictures, the weight of their loss, and the seed of their draws."""

    weight: float
    cache: DatasetCache
    seed: int


class TrainerState(NamedTuple):
    """State that changes while an overlay trains, to be sent to other processes."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    ema: dict[str, Tensor]


@dataclass
class Trainer:
    """An overlay attached to its base, with its optimizer and the encoded pictures.

    Attributes:
        processes: The processes that train the same overlay on other rows of every batch.
        preview_image: The image that previews of a pix2pix model edit; None for other bases.
        is_updating_weights: True while the optimizer changes the weights: an interruption then leaves them between
            two steps.
        ema: The exponential moving average of the weights, by name; empty if the plan has none.
        training_weights: The weights as the optimizer left them, while the overlay holds their average; empty
            otherwise.
    """

    base: Base
    overlay: Overlay
    optimizer: Optimizer
    cache: DatasetCache
    plan: Plan
    processes: Processes = field(default_factory=Processes)
    preview_image: InitImage | None = None
    is_updating_weights: bool = field(default=False, init=False)
    ema: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False)
    training_weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False)

    def __post_init__(self) -> None:
        """Start the average at the current weights."""
        if self.plan.ema:
            self.ema = {name: weight.detach().clone() for name, weight in self.overlay.trainable_parameters.items()}

    def training_step(self, step: int, rate: float, part_rates: Mapping[str, float] | None = None) -> float:
        """Take one optimizer step and return its loss, the mean over all batches and processes.

        Args:
            step: Optimizer steps taken before. Together with the plan's seed it decides every random draw.
            rate: The learning rate of this step.
            part_rates: Learning rates of the parts that have their own: "text", "words".

        Raises:
            TrainingDiverged: The loss, the gradients or the new weights are NaN or infinite. The overlay is then as
                it was before.
            ProcessFailed: Another process failed or is gone.
        """
        plan, processes = self.plan, self.processes
        weights = list(self.overlay.trainable_parameters.values())

        # Dropout draws from torch's global generator: the same after a resume, different in every process.
        dropout_seed = derive_seed(plan.seed, "dropout", step * processes.count + processes.rank)
        torch.manual_seed(dropout_seed)  # pyright: ignore[reportUnknownMemberType]

        self.optimizer.zero_grad()
        loss = torch.zeros(())
        for batch_index in range(step * plan.accumulation, (step + 1) * plan.accumulation):
            for term in self._loss_terms():
                # Sample pictures, timesteps and noise for all processes, and take the rows of this one.
                cache, batch = self._draw_batch(term, batch_index)
                latents = cache.draw_latents(batch.pictures, term.seed, batch.offset)
                cond = cache.captions.encode_batch(batch.pictures, batch.captionless, term.seed, batch.offset)
                image_condition = cache.draw_image_conditions(
                    batch.pictures, term.seed, batch.offset, plan.image_dropout
                )

                # Add the noise, predict it, and measure the error.
                with base_autocast(self.base):
                    term_loss = denoising_errors(
                        self.base,
                        latents,
                        cond,
                        batch.noise.to(latents.device),
                        batch.timesteps,
                        input_noise=None if batch.input_noise is None else batch.input_noise.to(latents.device),
                        weighting=create_loss_weighting(plan),
                        huber=create_huber_loss(plan),
                        weights=None if cache.weights is None else cache.weights[batch.pictures.to(latents.device)],
                        image_condition=image_condition,
                    ).mean()
                scaled_loss = term.weight * term_loss / plan.accumulation

                # An embedding gets no gradient from captions without its name. Going backward after every term keeps
                # the memory of one term only.
                if scaled_loss.requires_grad:
                    torch.autograd.backward(scaled_loss)
                loss = loss + scaled_loss.detach().cpu()

        # Average over the processes, and clip.
        mean_loss = processes.mean(loss.item())
        processes.average_gradients(weights)
        grad_norm = clip_grad_norm_(weights, plan.gradient_norm or math.inf)
        if not (math.isfinite(mean_loss) and grad_norm.isfinite()):
            raise TrainingDiverged(
                f"the loss became NaN or infinite at step {step + 1} (learning rate {rate:g}): lower the learning rate"
            )

        # Step, and update the EMA.
        for group in self.optimizer.param_groups:
            group["lr"] = (part_rates or {}).get(group.get("part", ""), rate)
        self.is_updating_weights = True
        self._optimizer_step(step, rate)
        self._update_ema(step + 1)
        self.is_updating_weights = False
        return mean_loss

    def validate(self, validation_set: ValidationSet) -> ValidationLoss:
        """Return the losses on the validation pictures, with the overlay as it would be used."""
        with self.evaluation_mode():
            return validation_set.loss(self.base)

    def generate_previews(self, recipes: Iterable[Recipe]) -> list[Picture]:
        """Generate pictures with the overlay as it would be used."""
        with self.evaluation_mode():
            return make_pictures(self.base, recipes, self.preview_image)

    def is_noise(self, picture: Picture) -> bool:
        """Return True if a picture is rougher than all training pictures."""
        pixels = torch.tensor(np.asarray(picture.image, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            return is_noise(self.base.encode(pixels.to(self.base.device)), self.cache.latents)

    def restore(self, snapshot: Snapshot | None) -> None:
        """Go back to a snapshot, which the main process reads for all of them; None in the others."""
        if snapshot is not None:
            snapshot.restore(self.overlay, self.optimizer)
            if self.plan.ema:
                state = snapshot.overlay().state_dict()
                self.ema = {name: state[name].to(weight) for name, weight in self.overlay.trainable_parameters.items()}
        self.synchronize()

    def synchronize(self) -> None:
        """Copy weights, optimizer state and EMA of the main process to the others."""
        if self.processes.count == 1:
            return
        state = self.processes.run_on_main(self._state_on_cpu)
        if not self.processes.is_main:
            self._load_state(state)

    @contextmanager
    def evaluation_mode(self) -> Generator[None]:
        """Switch to the overlay as it would be used: with the averaged weights, and without dropout."""
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
            self._copy_weights(self.training_weights)  # a schedule-free optimizer's way back is not exact
            self.training_weights = {}
            self.overlay.train()

    @torch.no_grad()
    def replace_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the final weights by those of another snapshot, by their names."""
        for name, weight in self.overlay.state_dict(keep_vars=True).items():
            weight.detach().copy_(weights[name])

    def finalize_weights(self) -> None:
        """Leave the overlay as it is used, with the averaged weights, at the end of the training."""
        set_training_mode(self.optimizer, is_training=False)
        self._copy_weights(self.ema)

    def _loss_terms(self) -> Iterator[LossTerm]:
        """Yield the terms of the loss: the training pictures and, for prior preservation, as many class pictures."""
        class_images, seed = self.cache.class_images, self.plan.seed
        if class_images is None:
            yield LossTerm(1.0, self.cache, seed)
            return
        yield LossTerm(0.5, self.cache, seed)
        yield LossTerm(self.plan.class_weight / 2, class_images, derive_seed(seed, "class pictures", 0))

    def _draw_batch(self, term: LossTerm, batch_index: int) -> tuple[DatasetCache, TrainingBatch]:
        """Return the bucket that a batch is from, and what this process trains on of it."""
        batch_size, cache, pictures = self.plan.batch_size * self.processes.count, term.cache, None
        if cache.other_buckets:
            picture_counts = [len(bucket.latents) for bucket in cache.buckets]
            bucket_index, pictures = draw_bucket_batch(term.seed, batch_index, picture_counts, batch_size)
            cache = cache.buckets[bucket_index]
        batch = draw_batch(
            term.seed,
            batch_index,
            batch_size=batch_size,
            pictures=pictures,
            picture_count=len(cache.latents),
            latent_shape=cache.latents.shape[1:],
            timestep_count=len(self.base.schedule),
            timestep_bias=self.plan.timestep_bias,
            caption_dropout=self.plan.caption_dropout,
            noise_offset=self.plan.noise_offset,
            pyramid_noise=self.plan.pyramid_noise,
            input_perturbation=self.plan.input_perturbation,
        )
        return cache, batch.select_rows(self.processes.rows(self.plan.batch_size))

    @torch.no_grad()
    def _optimizer_step(self, step: int, rate: float) -> None:
        """Let the optimizer take its step, and undo it if it leads to weights that are NaN or infinite.

        Finite gradients do not rule that out: a learning rate can be too large for float32.
        """
        weights = list(self.overlay.trainable_parameters.values())
        is_safe = is_finite_step(self.plan.optimizer, self.optimizer, weights)
        backup = [] if is_safe else [tensor.clone() for tensor in self._mutable_tensors()]
        self.optimizer.step()
        torch.autograd.graph.increment_version(weights)  # which a fused step does not do
        if is_safe or all(weight.isfinite().all() for weight in self.overlay.parameters()):
            self.overlay.after_step()
            return
        for tensor, old in zip(self._mutable_tensors(), backup, strict=False):  # the first step adds moments
            tensor.copy_(old)
        self.is_updating_weights = False
        raise TrainingDiverged(
            f"the weights became NaN or infinite at step {step + 1} (learning rate {rate:g}): lower the learning rate"
        )

    def _mutable_tensors(self) -> list[Tensor]:
        """Return all that the optimizer changes: the overlay's weights, then its own moments of them."""
        states: Iterable[Mapping[str, object]] = self.optimizer.state.values()
        moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        return [*self.overlay.trainable_parameters.values(), *moments]

    @torch.no_grad()
    def _update_ema(self, step: int) -> None:
        """Move the average towards the weights; faster in the first steps, as it starts at untrained weights."""
        if not self.plan.ema:
            return
        decay = min(self.plan.ema, (1 + step) / (10 + step))  # as TensorFlow's ExponentialMovingAverage
        for name, weight in self.overlay.trainable_parameters.items():
            self.ema[name].lerp_(weight.detach(), 1 - decay)

    @torch.no_grad()
    def _copy_weights(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in self.overlay.trainable_parameters.items():
            if name in weights:
                weight.copy_(weights[name])

    def _state_on_cpu(self) -> TrainerState:
        weights = {name: weight.detach() for name, weight in self.overlay.state_dict().items()}
        return to_cpu(TrainerState(weights, self.optimizer.state_dict(), self.ema))

    @torch.no_grad()
    def _load_state(self, state: TrainerState) -> None:
        for name, weight in self.overlay.state_dict(keep_vars=True).items():
            weight.detach().copy_(state.weights[name])
        self.optimizer.load_state_dict(state.optimizer)
        self.ema = {name: average.to(self.base.device) for name, average in state.ema.items()}
