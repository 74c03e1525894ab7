"""The pictures that a run is examined on: those of a folder of their own, which are never learned from, or the same."""

from __future__ import annotations

from pathlib import Path

from velatura.base.base import Base
from velatura.datasets.folder import Dataset, Example, read_dataset
from velatura.errors import BadDataset
from velatura.overlays.overlay import Overlay
from velatura.training.cache import DatasetCache
from velatura.training.class_pictures import encode_dataset
from velatura.training.fingerprint import fingerprint_examples
from velatura.training.plan import Plan
from velatura.training.validation import ValidationSet


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
