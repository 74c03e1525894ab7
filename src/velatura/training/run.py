"""The folder that a training run leaves behind: what was planned, what happened, and the overlay at several steps."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from velatura import formats
from velatura.errors import Occupied
from velatura.files import replacing
from velatura.overlays.overlay import Overlay
from velatura.sampling.generate import Picture
from velatura.tensors import write_safetensors
from velatura.training.plan import Plan

# What the webui keeps of a name: letters, digits and these; separators of paths are not among them
UNFIT_FOR_FILES = re.compile(r"[^\w .-]")


@dataclass(frozen=True)
class RunFolder:
    """A run on disk, written as the run goes on; files are called by the overlay's name, as a prompt's tag calls it.

    plan.json           the plan, as Plan reads it
    log.jsonl           a line for what the run began with, then one per step: loss, rate, seconds since the beginning
    snapshots/          inca-000100.safetensors, the overlay after 100 steps, and inca-000100.state of its optimizer
    previews/           inca-000100.png, a picture made with it then
    inca.safetensors    the overlay at the end; it is there only when the run is over
    """

    path: Path
    name: str

    @classmethod
    def create(cls, path: str | os.PathLike[str], name: str, plan: Plan, beginning: Mapping[str, object]) -> Self:
        """Make the folder with its plan and the first line of its log; raises Occupied if anything is there already."""
        path = vacant(path)
        with replacing(path / "plan.json") as beside:
            beside.write_text(plan.model_dump_json(indent=2) + "\n", "utf-8")
        folder = cls(path, file_name(name))
        folder.log(beginning)
        return folder

    @property
    def overlay(self) -> Path:
        """Where the trained overlay is, once the run is over."""
        return self.path / f"{self.name}.safetensors"

    def discard(self) -> None:
        """Undo create: a run that learned nothing must not stand in the way of the next."""
        for file in (self.path / "plan.json", self.path / "log.jsonl"):
            file.unlink(missing_ok=True)
        self.path.rmdir()

    def log(self, record: Mapping[str, object]) -> None:
        """Add one line to the log."""
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def snapshot(self, overlay: Overlay, optimizer: Optimizer, step: int) -> Path:
        """Keep the overlay after a step, with what it takes to train on; chance needs no keeping, see chance.py."""
        path = self.path / "snapshots" / f"{self.name}-{step:06}.safetensors"
        write_safetensors(path.with_suffix(".state"), optimizer_state(optimizer), {"step": str(step)})
        formats.save(overlay, path)
        return path

    def preview(self, picture: Picture, step: int) -> None:
        """Keep a picture that was made after a step."""
        path = self.path / "previews" / f"{self.name}-{step:06}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)


def vacant(path: str | os.PathLike[str]) -> Path:
    """The path, where a run may begin: nothing is there yet, or an empty folder; raises Occupied otherwise."""
    path = Path(path).expanduser()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise Occupied(f"{path} is there already; name another folder for this run, or remove that one")
    return path


def file_name(name: str) -> str:
    """What the files of an overlay of that name are called, without an ending: one part of a path, never empty."""
    return UNFIT_FOR_FILES.sub("", name).strip(" .") or "overlay"


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as named tensors: "0.exp_avg" is what it keeps under that name of its first parameter."""
    kept: dict[int, dict[str, Tensor | float]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, values in kept.items()
        for name, value in values.items()
    }
