"""The folder that a training run leaves behind: what was planned, what happened, and the overlay at several steps."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from velatura import formats
from velatura.card import Card
from velatura.errors import AlreadyExists, BadFile, NoEffect
from velatura.files import atomic_folder
from velatura.formats import hub
from velatura.overlays.overlay import Overlay
from velatura.tiny import DATA_FOLDER
from velatura.training.plan import Plan
from velatura.training.run.launching import is_one_of_several
from velatura.training.run.log import TEMP_PREFIX, RunLog, atomic_write
from velatura.training.run.plot import loss_plot
from velatura.training.run.previews import Previews
from velatura.training.run.snapshots import Snapshot, list_snapshots

# What the webui keeps of a name: letters, digits and these; separators of paths are not among them
FORBIDDEN_IN_FILE_NAMES = re.compile(r"[^\w .-]")

# What a log says first at the least
HEADER_KEYS = frozenset({"base", "base_hash", "device", "dtype", "files", "folder", "over_others", "overlay", "torch"})

JsonType = TypeVar("JsonType")


@dataclass(frozen=True)
class RunFolder:
    """A run on disk, written as the run goes on; files are called by the overlay's name, as a prompt's tag calls it.

    plan.json           the plan, as Plan reads it
    data.json           each picture's name, with a hash of it and its caption
    log.jsonl           a line for what the run began with, then one per step: loss, rate, seconds since the beginning
    snapshots/          inca-000100.safetensors, the overlay after 100 steps, and inca-000100.state, which is all else
                        that it takes to go on from there; inca-best.safetensors, the one of the lowest validation loss
    loss.png            the losses of all steps and of the fixed pictures
    previews/           inca-000100.png, a picture made with it then, or several, inca-000100-1.png and so on
    previews.png        all of them, a row for each step
    inca.safetensors    the overlay at the end; it is there only when the run is over

    The log is locked while a process is at work on the run.
    """

    path: Path
    name: str
    log: RunLog

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        name: str,
        plan: Plan,
        header: Mapping[str, object],
        *,
        data_fingerprint: Mapping[str, str],
        write_first_snapshot: Callable[[RunFolder], object],
    ) -> Self:
        """Make the folder, all of it at once, with the first line of its log; raises Occupied if anything is there.

        begin writes the first snapshot: from the moment that the folder is there, the run can be gone on with.
        """
        path = check_vacant(path)
        with atomic_folder(path) as temp_folder:
            with atomic_write(temp_folder / "plan.json") as file:
                file.write_text(plan.model_dump_json(indent=2) + "\n", "utf-8")
            with atomic_write(temp_folder / "data.json") as file:
                file.write_text(json.dumps(data_fingerprint, indent=0, ensure_ascii=False) + "\n", "utf-8")
            folder = cls(temp_folder, file_name(name), RunLog(temp_folder / "log.jsonl"))
            try:
                folder.log.add({**header, "files": folder.name})
                write_first_snapshot(folder)
            except BaseException:
                folder.log.close()
                raise
        return replace(folder, path=path, log=folder.log.relocate(path / "log.jsonl"))

    @classmethod
    def reopen(cls, path: str | os.PathLike[str]) -> Self:
        """The folder of a run that was broken off; raises BadFile where there is none, NoEffect where it is over.

        What a crash left half written is removed.
        """
        path = Path(path).expanduser()
        if not (path / "log.jsonl").is_file():
            raise BadFile(f"{path} is no folder of a run, there is no log.jsonl in it: name the folder that train made")
        log = RunLog(path / "log.jsonl")
        header = (log.records() or [dict[str, object]()])[0]
        name = str(header.get("files"))
        if not header.keys() >= HEADER_KEYS or file_name(name) != name:  # another name could lead out of the folder
            log.close()
            raise BadFile(f"{log.path} does not say how its run began, so the run cannot go on: train anew")
        folder = cls(path, name, log)
        if folder.overlay.exists():
            log.close()
            raise NoEffect(f"this run is over, its overlay is {folder.overlay}: there is nothing to resume")
        for leftover in [*path.glob(f"{TEMP_PREFIX}*"), *path.glob(f"*/{TEMP_PREFIX}*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        return folder

    @property
    def overlay(self) -> Path:
        """Where the trained overlay is, once the run is over."""
        return self.path / f"{self.name}.safetensors"

    @property
    def best(self) -> Path:
        """Where the overlay of the lowest validation loss is kept."""
        return self.path / "snapshots" / f"{self.name}-best.safetensors"

    @property
    def header(self) -> dict[str, object]:
        """What the run began with: the first line of its log."""
        return self.log.records()[0]

    @property
    def card(self) -> Card:
        """The overlay's as the run began; raises BadFile where that is none."""
        try:
            return Card.model_validate(self.header["overlay"])
        except ValidationError:
            raise BadFile(f"{self.log.path} does not say what is trained, so it cannot go on: train anew") from None

    @property
    def plan(self) -> Plan:
        """The plan that it follows."""
        return _read(self.path / "plan.json", Plan)

    @property
    def data_fingerprint(self) -> dict[str, str]:
        """What the pictures were when it began."""
        return _read(self.path / "data.json", dict[str, str])

    @property
    def snapshots(self) -> list[Snapshot]:
        """Those that are whole, by step."""
        return list_snapshots(self.path / "snapshots", self.name)

    def step_records(self) -> list[dict[str, object]]:
        """The records of every step so far, without those that were taken back."""
        records: list[dict[str, object]] = []
        for record in self.log.records():
            if "back_to" in record:
                del records[cast("int", record["back_to"]) :]
            elif "loss" in record:
                records.append(record)
        return records

    def losses(self) -> list[float]:
        """The loss of every one of them."""
        return [cast("float", record["loss"]) for record in self.step_records()]

    def validation_losses(self) -> dict[int, float]:
        """The losses on the fixed pictures, by step."""
        records = [record for record in self.log.records() if "validated" in record]
        return {cast("int", record["validated"]): cast("float", record["validation"]) for record in records}

    def discard(self) -> None:
        """Undo create: a run that learned nothing must not stand in the way of the next."""
        self.log.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def snapshot(self, step: int) -> Snapshot:
        """Where the snapshot after a step is, or is to be."""
        return Snapshot(self.path / "snapshots" / f"{self.name}-{step:06}.safetensors")

    @property
    def previews(self) -> Previews:
        """The pictures that were made on the way."""
        return Previews(self.path / "previews", self.path / "previews.png", self.name)

    def plot(self, losses: Sequence[float], validation_losses: Mapping[int, float]) -> None:
        """Draw the losses so far."""
        with atomic_write(self.path / "loss.png") as temp_path:
            loss_plot(losses, validation_losses).save(temp_path)

    def save(self, overlay: Overlay, path: Path) -> None:
        """Write the overlay of the end, or the best one."""
        with atomic_write(path) as temp_path:
            formats.save(overlay, temp_path)


def _read(path: Path, content_type: type[JsonType]) -> JsonType:
    """What a file of JSON says; raises BadFile for one that is gone or says something else."""
    try:
        return TypeAdapter(content_type).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise BadFile(f"{path} cannot be read ({reason}): put it back as it was, or train anew") from None


def base_of_run(path: str | os.PathLike[str]) -> str:
    """Where the base that a run began on is, or its name where nothing is there any more; raises as reopen does."""
    if is_one_of_several():  # only the one that leads may lock the folder, and it looks closer
        with suppress(OSError, ValueError, LookupError):
            return _base_location(json.loads(Path(path, "log.jsonl").expanduser().read_bytes().splitlines()[0]))
    folder = RunFolder.reopen(path)
    folder.log.close()
    return _base_location(folder.header)


def _base_location(header: Mapping[str, object]) -> str:
    location, name = str(header.get("base_from") or ""), str(header["base"])
    is_available = location.startswith(hub.HUB_PREFIX) or (location and Path(location).exists())
    return (
        location if is_available and Path(location) != DATA_FOLDER / name else name
    )  # what ships is opened by its name


def check_vacant(path: str | os.PathLike[str]) -> Path:
    """The path, where a run may begin: nothing is there yet, or an empty folder; raises Occupied otherwise."""
    path = Path(path).expanduser()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise AlreadyExists(f"{path} is there already; name another folder for this run, or remove that one")
    return path


def file_name(name: str) -> str:
    """What the files of an overlay of that name are called, without an ending: one part of a path, never empty."""
    return FORBIDDEN_IN_FILE_NAMES.sub("", name).strip(" .") or "overlay"
