"""A fixed examination: the same pictures, timesteps and noise at every try, so that two losses can be compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from velatura.base.base import Base
from velatura.datasets.folder import Dataset, Example, read_dataset
from velatura.errors import BadDataset
from velatura.overlays.overlay import Overlay
from velatura.training.data.cache import DatasetCache, encode_dataset
from velatura.training.data.captions import CaptionConditioning
from velatura.training.data.fingerprint import fingerprint_examples
from velatura.training.loss import denoising_loss
from velatura.training.noise import derive_seed
from velatura.training.plan import Plan
from velatura.training.precision import base_autocast

VALIDATION_BATCH_SIZE = 8
VALIDATION_SEED = 0  # of every run, whatever its own: so that runs can be compared too
NOISE_MARGIN = 0.1  # than the roughest picture that is learned from: such a preview is noise. Noise is at -0.2 to 0.1


@dataclass(frozen=True)
class ValidationSet:
    """Latents, what is said of which pictures, timesteps from all over the schedule, one a picture, and noise."""

    latents: Tensor
    captions: CaptionConditioning
    pictures: Tensor
    timesteps: Tensor
    noise: Tensor

    @classmethod
    def from_cache(cls, cache: DatasetCache, count: int, timestep_count: int) -> Self:
        """Take pictures in turn and the middles of as many slices of the schedule."""
        rows = torch.arange(count) % len(cache.latents)
        latents = cache.latents[rows]
        noise = [
            torch.randn(
                latents.shape[1:],
                generator=torch.Generator().manual_seed(derive_seed(VALIDATION_SEED, "validation", number)),
            )
            for number in range(count)
        ]
        timesteps = ((torch.arange(count) + 0.5) * timestep_count / count).long()
        return cls(latents, cache.captions, rows, timesteps, torch.stack(noise).to(latents.device))

    @torch.no_grad()
    def loss(self, base: Base) -> float:
        """The plain mean squared error, whatever the plan weighs while learning."""
        total = 0.0
        for first in range(0, len(self.latents), VALIDATION_BATCH_SIZE):
            rows = torch.arange(first, min(first + VALIDATION_BATCH_SIZE, len(self.latents)))
            cond = self.captions.encode_for_validation(self.pictures[rows])
            with base_autocast(base):
                batch_loss = denoising_loss(base, self.latents[rows], cond, self.noise[rows], self.timesteps[rows])
            total += batch_loss.item() * len(rows)
        return total / len(self.latents)


def is_noise(latents: Tensor, training_latents: Tensor) -> bool:
    """Whether a picture is rougher than any that are learned from; both are latents, (batch, 4, height, width)."""
    return smoothness(latents).min().item() < smoothness(training_latents).min().item() - NOISE_MARGIN


def smoothness(latents: Tensor) -> Tensor:
    """How alike neighbours are, about 0 in noise and near 1 where all is flat: the correlation of latents side by side.

    latents: (batch, 4, height, width); the result: (batch,).
    """
    centred = latents.float() - latents.float().mean(dim=(2, 3), keepdim=True)
    power = centred.square().mean(dim=(1, 2, 3))
    horizontal = (centred[..., 1:] * centred[..., :-1]).mean(dim=(1, 2, 3))
    vertical = (centred[..., 1:, :] * centred[..., :-1, :]).mean(dim=(1, 2, 3))
    return torch.where(power > 0, (horizontal + vertical) / 2 / power, 1.0)


def resolve_validation_folder(plan: Plan) -> Plan:
    """The plan with its validation folder as it is called from anywhere: a run may be resumed elsewhere."""
    if plan.validation_folder is None:
        return plan
    return plan.model_copy(update={"validation_folder": str(Path(plan.validation_folder).expanduser().absolute())})


def create_validation_set(
    base: Base, overlay: Overlay, dataset: Dataset, plan: Plan, cache: DatasetCache
) -> ValidationSet | None:
    """What the plan has the overlay examined on; cache: the pictures that are learned from.

    Raises BadDataset where a picture is in both.
    """
    if not plan.validation_pictures:
        return None
    examples = validation_examples(dataset, plan)
    if examples:
        cache = encode_dataset(base, overlay, Dataset(examples), plan)
    return ValidationSet.from_cache(cache, plan.validation_pictures, len(base.schedule))


def validation_examples(dataset: Dataset, plan: Plan) -> list[Example]:
    """The pictures of the validation folder, if there is one; raises BadDataset where one is learned from too."""
    examples = _read_validation_folder(plan)
    training_paths = {example.path.resolve() for example in dataset.examples}
    shared = [example.path for example in examples if example.path.resolve() in training_paths]
    if shared:
        raise BadDataset(f"{shared[0]} is learned from and examined on: name a validation folder of other pictures")
    return examples


def fingerprint_data(dataset: Dataset, plan: Plan) -> dict[str, str]:
    """The fingerprint of all pictures of a run."""
    digests = fingerprint_examples([*dataset.examples, *dataset.regularisation])
    return digests | {
        f"validation/{name}": digest for name, digest in fingerprint_examples(_read_validation_folder(plan)).items()
    }


def _read_validation_folder(plan: Plan) -> list[Example]:
    folder = plan.validation_folder if plan.validation_pictures else None
    return [] if folder is None else read_dataset(folder).examples
