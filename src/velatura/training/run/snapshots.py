"""All that a run goes on from: the overlay and, beside it, the optimizer's state and how far the run had come.

Random numbers need no keeping, nor does the place in the data: both follow from the seed and the step, see chance.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from torch import Tensor
from torch.optim import Optimizer

from velatura import formats
from velatura.errors import BadFile
from velatura.overlays.overlay import Overlay
from velatura.tensors import open_tensors, write_safetensors
from velatura.training.guard import LossMonitor
from velatura.training.kinds.pivotal import activate_bundled_embeddings
from velatura.training.run.log import atomic_write, flush

PROGRESS_KEY = "velatura.progress"
STEP_KEY = "step"
MOMENT_NAMES = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "z", "state1", "state2"}
)  # one number for each weight
TRAINING_WEIGHTS_PREFIX = "raw."  # weights as they learn, where the overlay's file holds an average of them


class Progress(BaseModel):
    """How far a run had come: steps done, the length of its log, what the guard had seen, and the optimizer's numbers.

    validation is the loss on the fixed pictures; scalars are what the optimizer keeps of each parameter that is no
    tensor, groups its own settings.
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
    """A snapshot on disk; it is whole where both of its files are there, of which the overlay is written last."""

    path: Path

    @property
    def state_path(self) -> Path:
        """The file beside the overlay."""
        return self.path.with_suffix(".state")

    @property
    def step(self) -> int:
        """The steps that it has learned."""
        return int(self.path.stem.rpartition("-")[2])

    def write(
        self,
        overlay: Overlay,
        optimizer: Optimizer,
        progress: Progress,
        training_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write both files; the optimizer's own numbers are put into the progress here."""
        tensors = optimizer_state(optimizer) | {
            TRAINING_WEIGHTS_PREFIX + name: weight for name, weight in (training_weights or {}).items()
        }
        progress = progress.model_copy(update={"scalars": _scalars(optimizer), "groups": _groups(optimizer)})
        with atomic_write(self.state_path) as temp_path:
            write_safetensors(
                temp_path, tensors, {"step": str(progress.step), PROGRESS_KEY: progress.model_dump_json()}
            )
        with atomic_write(self.path) as temp_path:
            formats.save(overlay, temp_path)

    def progress(self) -> Progress:
        """How far the run had come; raises BadFile."""
        try:
            return Progress.model_validate_json(open_tensors(self.state_path).metadata[PROGRESS_KEY])
        except (KeyError, ValidationError):
            raise BadFile(
                f"{self.state_path} says nothing of how far the run had come: remove it and its overlay"
            ) from None

    def overlay(self) -> Overlay:
        """The overlay as it was."""
        return activate_bundled_embeddings(formats.open_overlay(self.path))

    def restore(self, overlay: Overlay, optimizer: Optimizer) -> None:
        """Put the weights as they learned, and the optimizer's state, back into these."""
        tensors, weights = open_tensors(self.state_path).tensors, self.overlay().state_dict()
        for name, weight in overlay.state_dict(keep_vars=True).items():
            weight.detach().copy_(
                tensors[TRAINING_WEIGHTS_PREFIX + name] if TRAINING_WEIGHTS_PREFIX + name in tensors else weights[name]
            )
        self._check_moment_shapes(optimizer, tensors)
        progress, device = self.progress(), next(overlay.parameters()).device
        state: dict[int, dict[str, Any]] = {int(index): {**values} for index, values in progress.scalars.items()}
        for key in tensors:
            if not key.startswith(TRAINING_WEIGHTS_PREFIX):
                index, _, name = key.partition(".")
                target_device = torch.device("cpu") if name == STEP_KEY else device
                state.setdefault(int(index), {})[name] = tensors[key].clone().to(target_device)
        groups = cast("list[dict[str, Any]]", optimizer.state_dict()["param_groups"])
        groups = [current | dict(saved) for current, saved in zip(groups, progress.groups, strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for group in optimizer.param_groups:
            if "train_mode" in group:  # of schedule-free ones, at rest while it was kept: the weights are the raw ones
                group["train_mode"] = True

    def _check_moment_shapes(self, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Refuse moments of other shapes than the weights: a fused step does not look, and writes beyond their end."""
        groups = cast("list[dict[str, list[Tensor]]]", optimizer.param_groups)
        weights = [weight for group in groups for weight in group["params"]]
        shapes: dict[str, set[torch.Size]] = {}
        for key, tensor in tensors.items():
            if not key.startswith(TRAINING_WEIGHTS_PREFIX):
                index, _, name = key.partition(".")
                shapes.setdefault(index, set()).update({tensor.shape} if name in MOMENT_NAMES else ())
                is_fit = index.isdecimal() and int(index) < len(weights) and (name != STEP_KEY or tensor.numel() == 1)
                if not is_fit or not shapes[index] <= {weights[int(index)].shape}:
                    raise BadFile(
                        f"{self.state_path} is no state of this run, {key} fits no weight: remove it and its overlay"
                    )

    def remove(self) -> None:
        """Take it away, the overlay first: without it the rest is none."""
        self.path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)
        flush(self.path.parent)


def list_snapshots(folder: Path, name: str) -> list[Snapshot]:
    """The whole snapshots in a folder, by step."""
    paths = [path for path in folder.glob("*.safetensors") if path.stem.startswith(f"{name}-")]
    candidates = [Snapshot(path) for path in paths if path.stem[len(name) + 1 :].isdigit()]
    return sorted(
        (snapshot for snapshot in candidates if snapshot.state_path.is_file()), key=lambda snapshot: snapshot.step
    )


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: "0.exp_avg" is what it keeps under that name of its first parameter."""
    return {
        f"{index}.{name}": value.contiguous()
        for index, values in _state(optimizer).items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def _scalars(optimizer: Optimizer) -> dict[str, dict[str, JsonValue]]:
    return {
        str(index): {name: cast("JsonValue", value) for name, value in values.items() if not isinstance(value, Tensor)}
        for index, values in _state(optimizer).items()
    }


def _groups(optimizer: Optimizer) -> list[dict[str, JsonValue]]:
    """The settings of each group, which some optimizers change as they go; those are plain numbers."""
    groups = cast("list[dict[str, object]]", optimizer.state_dict()["param_groups"])
    plain = (int, float, str, bool, type(None))
    return [
        {name: cast("JsonValue", value) for name, value in group.items() if isinstance(value, plain)}
        for group in groups
    ]


def _state(optimizer: Optimizer) -> dict[int, dict[str, object]]:
    return cast("dict[int, dict[str, object]]", optimizer.state_dict()["state"])
