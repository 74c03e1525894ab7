"""Validation loss: the same pictures, timesteps and noise every time, so that two losses can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple, Self

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.datasets.folder import Dataset, Example, read_dataset
from velatura.errors import BadDataset
from velatura.overlays.overlay import Overlay
from velatura.training.data.cache import DatasetCache, encode_dataset
from velatura.training.data.captions import CaptionConditioning
from velatura.training.data.fingerprint import fingerprint_examples
from velatura.training.loss import denoising_errors
from velatura.training.noise import derive_seed
from velatura.training.plan import Plan
from velatura.training.precision import base_autocast

VALIDATION_BATCH_SIZE = 8
VALIDATION_SEED = 0  # not the plan's, so that runs with different seeds can be compared
NOISE_MARGIN = 0.1  # a preview this much rougher than the roughest training picture is noise, which is at -0.2 to 0.1


class ValidationLoss(NamedTuple):
    """Mean squared error on the validation pictures, by how much noise was added.

    Attributes:
        low: At timesteps in the first half of the noise schedule, where there is least noise; None without any there.
        high: At timesteps in the second half.
        mean: At all timesteps.
        high_errors: The errors whose mean is `high`, one for each row, so that two overlays can be compared row by row.
    """

    low: float | None
    high: float
    mean: float
    high_errors: tuple[float, ...] = ()

    def record(self) -> dict[str, object]:
        """Return the losses by their names in the log of a run."""
        return {
            "validation": self.mean,
            "low_noise": self.low,
            "high_noise": self.high,
            "high_noise_errors": [float(f"{error:.6g}") for error in self.high_errors],
        }


@dataclass(frozen=True)
class ValidationSet:
    """Fixed inputs of the validation loss.

    Attributes:
        latents: (pictures, 4, height / 8, width / 8).
        captions: Conditioning of all pictures of the cache that the latents are from.
        pictures: Index of each row's picture in `captions`, (pictures,).
        timesteps: Evenly spread over the noise schedule, (pictures,).
        noise: Same shape as `latents`.
        image_conditions: What a pix2pix UNet reads, of the same shape; None for no image.
    """

    latents: Tensor
    captions: CaptionConditioning
    pictures: Tensor
    timesteps: Tensor
    noise: Tensor
    image_conditions: Tensor | None = None

    @classmethod
    def from_cache(cls, cache: DatasetCache, count: int, timestep_count: int) -> Self:
        """Take pictures in turn, each with the middle of one of `count` equal slices of the noise schedule.

        Args:
            cache: Pictures of the most common size are used, without mirror images.
            count: Number of rows; pictures repeat if there are fewer.
            timestep_count: Number of timesteps of the noise schedule.
        """
        rows = torch.arange(count) % (len(cache.latents) - cache.mirrored_count)
        latents = cache.latents[rows]
        noise = torch.stack([validation_noise(number, latents.shape[1:]) for number in range(count)])
        timesteps = ((torch.arange(count) + 0.5) * timestep_count / count).long()
        conditions = None if cache.image_conditions is None else cache.image_conditions[rows]
        return cls(latents, cache.captions, rows, timesteps, noise.to(latents.device), conditions)

    def loss(self, base: Base) -> ValidationLoss:
        """Return the mean squared errors, without the weights and the Huber loss of the plan."""
        is_high = self.timesteps >= len(base.schedule) / 2
        low, high = torch.where(~is_high)[0], torch.where(is_high)[0]
        low_errors, high_errors = self._errors(base, low), self._errors(base, high)
        return ValidationLoss(
            low=fmean(low_errors) if low_errors else None,
            high=fmean(high_errors),
            mean=fmean([*low_errors, *high_errors]),
            high_errors=tuple(high_errors),
        )

    @torch.no_grad()
    def _errors(self, base: Base, all_rows: Tensor) -> list[float]:
        """Return the error of each of some rows."""
        errors: list[float] = []
        for start in range(0, len(all_rows), VALIDATION_BATCH_SIZE):
            rows = all_rows[start : start + VALIDATION_BATCH_SIZE]
            cond = self.captions.encode_for_validation(self.pictures[rows])
            with base_autocast(base):
                batch = denoising_errors(
                    base,
                    self.latents[rows],
                    cond,
                    self.noise[rows],
                    self.timesteps[rows],
                    image_condition=None if self.image_conditions is None else self.image_conditions[rows],
                )
            errors += [error.item() for error in batch]
        return errors


def validation_noise(number: int, shape: torch.Size) -> Tensor:
    """Return the noise of a number, the same in all runs."""
    generator = torch.Generator().manual_seed(derive_seed(VALIDATION_SEED, "validation", number))
    return torch.randn(shape, generator=generator)


def is_noise(latents: Tensor, training_latents: Tensor) -> bool:
    """Return True if a picture is clearly rougher than every training picture.

    Args:
        latents, training_latents: (batch, 4, height, width).
    """
    return smoothness(latents).min().item() < smoothness(training_latents).min().item() - NOISE_MARGIN


def smoothness(latents: Tensor) -> Tensor:
    """Return the correlation of neighbouring latents, about 0 for noise and near 1 for flat pictures, (batch,).

    Args:
        latents: (batch, 4, height, width).
    """
    centred = latents.float() - latents.float().mean(dim=(2, 3), keepdim=True)
    power = centred.square().mean(dim=(1, 2, 3))
    horizontal = (centred[..., 1:] * centred[..., :-1]).mean(dim=(1, 2, 3))
    vertical = (centred[..., 1:, :] * centred[..., :-1, :]).mean(dim=(1, 2, 3))
    return torch.where(power > 0, (horizontal + vertical) / 2 / power, 1.0)


def resolve_validation_folder(plan: Plan) -> Plan:
    """Return the plan with an absolute validation folder, because a run may be resumed from another directory."""
    if plan.validation_folder is None:
        return plan
    return plan.model_copy(update={"validation_folder": str(Path(plan.validation_folder).expanduser().absolute())})


def create_validation_set(
    base: Base, overlay: Overlay, dataset: Dataset, plan: Plan, cache: DatasetCache
) -> ValidationSet | None:
    """Create the plan's validation set, or return None if the plan has no validation.

    Args:
        base: Encodes the pictures of the validation folder.
        overlay: Overlay that is trained.
        dataset: Training pictures.
        plan: Names the validation folder and the number of pictures.
        cache: Encoded training pictures, which are used without a validation folder.

    Raises:
        BadDataset: A picture is both trained on and used for validation.
    """
    if not plan.validation_pictures:
        return None
    examples = validation_examples(dataset, plan)
    if examples:
        cache = encode_dataset(base, overlay, Dataset(examples), plan.model_copy(update={"flip": False}))
    return ValidationSet.from_cache(cache, plan.validation_pictures, len(base.schedule))


def validation_examples(dataset: Dataset, plan: Plan) -> list[Example]:
    """Return the pictures of the plan's validation folder, an empty list if there is none.

    Raises:
        BadDataset: A picture is both trained on and used for validation.
    """
    examples = _read_validation_folder(plan)
    training_paths = {example.path.resolve() for example in dataset.examples}
    shared = [example.path for example in examples if example.path.resolve() in training_paths]
    if shared:
        raise BadDataset(
            f"{shared[0]} is in the training folder and in the validation folder: choose a validation folder with "
            "other pictures"
        )
    return examples


def fingerprint_data(dataset: Dataset, plan: Plan) -> dict[str, str]:
    """Return a hash for each training, class and validation picture of a run, by name."""
    digests = fingerprint_examples([*dataset.examples, *dataset.regularisation])
    validation_digests = fingerprint_examples(_read_validation_folder(plan))
    return digests | {f"validation/{name}": digest for name, digest in validation_digests.items()}


def _read_validation_folder(plan: Plan) -> list[Example]:
    folder = plan.validation_folder if plan.validation_pictures else None
    return [] if folder is None else read_dataset(folder).examples
