"""Snapshots of a run: an overlay and, beside it, the optimizer's state and the progress that resuming needs.

Random number generators are not stored: every draw follows from the seed and the step (see noise.py). Functions that
read or write tensors import torch themselves, so that listing the snapshots of a run is quick.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from velatura.errors import BadFile
from velatura.training.guard import LossMonitor
from velatura.training.run.log import atomic_write, flush

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from velatura.overlays.overlay import Overlay

PROGRESS_KEY = "velatura.progress"
STEP_KEY = "step"
# Moments that have one number for every number of their weight
MOMENT_NAMES = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "z", "state1", "state2"})
TRAINING_WEIGHTS_PREFIX = (
    "raw."  # of the weights that the optimizer moves, where the overlay's file holds their average
)


class Progress(BaseModel):
    """Progress of a run at a snapshot.

    Attributes:
        step: Optimizer steps taken.
        log_size: Size of the log in bytes.
        validation: Loss on the validation pictures.
        watch: The state of the loss monitor.
        scalars: What the optimizer keeps of each parameter, by its index, other than tensors.
        groups: Settings of each parameter group, which some optimizers change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    step: int
    log_size: int
    validation: float | None = None
    watch: LossMonitor = LossMonitor()
    scalars: dict[str, dict[str, JsonValue]] = {}
    groups: list[dict[str, JsonValue]] = []


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk, complete if both of its files exist; the overlay's file, at `path`, is written last."""

    path: Path

    @property
    def state_path(self) -> Path:
        """Path of the optimizer's state, beside the overlay."""
        return self.path.with_suffix(".state")

    @property
    def step(self) -> int:
        """Optimizer steps taken, as the file name says."""
        return int(self.path.stem.rpartition("-")[2])

    def write(
        self,
        overlay: Overlay,
        optimizer: Optimizer,
        progress: Progress,
        training_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write both files.

        Args:
            overlay: As it is used, so with averaged weights if the plan has an EMA.
            optimizer: Its state is written as tensors, and into the scalars and groups of the progress.
            progress: The progress of the run, without the optimizer's part.
            training_weights: The weights that the optimizer moves, by name, where they differ from the overlay's.
        """
        from velatura.formats.save import save
        from velatura.tensors import write_safetensors

        raw_weights = {TRAINING_WEIGHTS_PREFIX + name: weight for name, weight in (training_weights or {}).items()}
        tensors = optimizer_state(optimizer) | raw_weights
        progress = progress.model_copy(update={"scalars": _scalars(optimizer), "groups": _groups(optimizer)})
        metadata = {STEP_KEY: str(progress.step), PROGRESS_KEY: progress.model_dump_json()}
        with atomic_write(self.state_path) as temp_path:
            write_safetensors(temp_path, tensors, metadata)
        with atomic_write(self.path) as temp_path:
            save(overlay, temp_path)

    def progress(self) -> Progress:
        """Read the progress of the run; raises BadFile if the file does not have it."""
        from velatura.tensors import open_tensors

        try:
            return Progress.model_validate_json(open_tensors(self.state_path).metadata[PROGRESS_KEY])
        except (KeyError, ValidationError):
            raise BadFile(f"{self.state_path} does not say how far the run was: remove it and its overlay") from None

    def overlay(self) -> Overlay:
        """Read the overlay."""
        from velatura.formats.open import open_overlay
        from velatura.training.kinds.pivotal import prepare_for_training

        return prepare_for_training(open_overlay(self.path))

    def restore(self, overlay: Overlay, optimizer: Optimizer) -> None:
        """Copy weights and optimizer state into an overlay and its optimizer, in place.

        Raises:
            BadFile: A file is damaged, or does not belong to this run.
        """
        import torch

        from velatura.tensors import open_tensors

        tensors, weights = open_tensors(self.state_path).tensors, self.overlay().state_dict()
        for name, weight in overlay.state_dict(keep_vars=True).items():
            raw_name = TRAINING_WEIGHTS_PREFIX + name
            weight.detach().copy_(tensors[raw_name] if raw_name in tensors else weights[name])
        self._check_moment_shapes(optimizer, tensors)
        progress, device = self.progress(), next(overlay.parameters()).device
        state: dict[int, dict[str, Any]] = {int(index): {**values} for index, values in progress.scalars.items()}
        for key, index, name in _optimizer_keys(tensors):
            target_device = torch.device("cpu") if name == STEP_KEY else device
            state.setdefault(int(index), {})[name] = tensors[key].clone().to(target_device)
        groups = cast("list[dict[str, Any]]", optimizer.state_dict()["param_groups"])
        groups = [current | dict(saved) for current, saved in zip(groups, progress.groups, strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for group in optimizer.param_groups:
            if "train_mode" in group:  # a schedule-free optimizer was in evaluation mode; these are training weights
                group["train_mode"] = True

    def _check_moment_shapes(self, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Refuse moments of other shapes than the weights: a fused step does not check, and writes out of bounds."""
        groups = cast("list[dict[str, list[Tensor]]]", optimizer.param_groups)
        weights = [weight for group in groups for weight in group["params"]]
        for key, index, name in _optimizer_keys(tensors):
            is_known = index.isdecimal() and int(index) < len(weights)
            is_scalar = name != STEP_KEY or tensors[key].numel() == 1
            has_shape = name not in MOMENT_NAMES or (is_known and tensors[key].shape == weights[int(index)].shape)
            if not (is_known and is_scalar and has_shape):
                raise BadFile(
                    f"{self.state_path} is not a state of this run, {key} fits no weight: remove it and its overlay"
                )

    def remove(self) -> None:
        """Delete both files, the overlay's first: without it the other one is ignored."""
        self.path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)
        flush(self.path.parent)


def list_snapshots(folder: Path, name: str) -> list[Snapshot]:
    """Return the complete snapshots in a folder, by step."""
    paths = [path for path in folder.glob("*.safetensors") if path.stem.startswith(f"{name}-")]
    candidates = [Snapshot(path) for path in paths if path.stem[len(name) + 1 :].isdigit()]
    complete = [snapshot for snapshot in candidates if snapshot.state_path.is_file()]
    return sorted(complete, key=lambda snapshot: snapshot.step)


def find_last_good(snapshots: Sequence[Snapshot], monitor: LossMonitor, snapshot_every: int) -> Snapshot:
    """Return the last snapshot whose validation loss is near the lowest, or the first of all.

    Args:
        snapshots: By step.
        monitor: Knows the lowest validation loss.
        snapshot_every: Steps between two snapshots of the plan. Those of an interruption do not count: where a run
            goes back to must not depend on when it was interrupted.
    """
    for snapshot in reversed(snapshots):
        is_planned = snapshot.step == 0 or is_due(snapshot_every, snapshot.step)
        if is_planned and monitor.is_good(snapshot.progress().validation):
            return snapshot
    return snapshots[0]


def is_due(interval: int, step: int) -> bool:
    """Return True if something that happens every so many steps is due after this one; an interval of 0 is never."""
    return interval > 0 and step % interval == 0


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state as named tensors: "0.exp_avg" is the `exp_avg` of its first parameter."""
    from torch import Tensor

    return {
        f"{index}.{name}": value.contiguous()
        for index, values in _state(optimizer).items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _optimizer_keys(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """Yield the keys of an optimizer's state, with the index of the parameter and the name of the value."""
    for key in tensors:
        if not key.startswith(TRAINING_WEIGHTS_PREFIX):
            index, _, name = key.partition(".")
            yield key, index, name


def _scalars(optimizer: Optimizer) -> dict[str, dict[str, JsonValue]]:
    from torch import Tensor

    return {
        str(index): {name: cast("JsonValue", value) for name, value in values.items() if not isinstance(value, Tensor)}
        for index, values in _state(optimizer).items()
    }


def _groups(optimizer: Optimizer) -> list[dict[str, JsonValue]]:
    """Return the plain settings of each parameter group, which some optimizers change."""
    groups = cast("list[dict[str, object]]", optimizer.state_dict()["param_groups"])
    plain = (int, float, str, bool, type(None))
    return [
        {name: cast("JsonValue", value) for name, value in group.items() if isinstance(value, plain)}
        for group in groups
    ]


def _state(optimizer: Optimizer) -> dict[int, dict[str, object]]:
    return cast("dict[int, dict[str, object]]", optimizer.state_dict()["state"])
