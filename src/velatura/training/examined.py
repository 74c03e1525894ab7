"""The pictures that a run is examined on: those of a folder of their own, which are never learned from, or the same."""

from __future__ import annotations

from pathlib import Path

from velatura.base.base import Base
from velatura.datasets.folder import Dataset, Example, read_dataset
from velatura.errors import BadDataset
from velatura.overlays.overlay import Overlay
from velatura.training.cache import Cache
from velatura.training.class_pictures import encode_lessons
from velatura.training.fingerprint import fingerprint
from velatura.training.plan import Plan
from velatura.training.validation import Examination


def settled(plan: Plan) -> Plan:
    """The plan with its validation folder as it is called from anywhere: a run may be resumed elsewhere."""
    if plan.validation_folder is None:
        return plan
    return plan.model_copy(update={"validation_folder": str(Path(plan.validation_folder).expanduser().absolute())})


def examination_of(base: Base, overlay: Overlay, dataset: Dataset, plan: Plan, cache: Cache) -> Examination | None:
    """What the plan has the overlay examined on; cache: the pictures that are learned from.

    Raises BadDataset where a picture is in both.
    """
    if not plan.validation_pictures:
        return None
    own = examined_apart(dataset, plan)
    if own:
        cache = encode_lessons(base, overlay, Dataset(own), plan)
    return Examination.of(cache, plan.validation_pictures, len(base.schedule))


def examined_apart(dataset: Dataset, plan: Plan) -> list[Example]:
    """The pictures of the validation folder, if there is one; raises BadDataset where one is learned from too."""
    own = _own(plan)
    learned = {each.path.resolve() for each in dataset.examples}
    both = [each.path for each in own if each.path.resolve() in learned]
    if both:
        raise BadDataset(f"{both[0]} is learned from and examined on: name a validation folder of other pictures")
    return own


def data_of(dataset: Dataset, plan: Plan) -> dict[str, str]:
    """The fingerprint of all pictures of a run."""
    learned = fingerprint([*dataset.examples, *dataset.regularising])
    return learned | {f"validation/{name}": each for name, each in fingerprint(_own(plan)).items()}


def _own(plan: Plan) -> list[Example]:
    folder = plan.validation_folder if plan.validation_pictures else None
    return [] if folder is None else read_dataset(folder).examples
