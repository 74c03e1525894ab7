"""Folder of a training run: its plan, its log, and the overlay at several steps."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from velatura.card import Card
from velatura.errors import AlreadyExists, BadFile, BadPlan, NoEffect, choose_number, quantity, warn
from velatura.files import atomic_folder, suggest_similar
from velatura.training.plan import Plan
from velatura.training.run.log import TEMP_PREFIX, RunLog, atomic_write
from velatura.training.run.plot import loss_plot
from velatura.training.run.previews import Previews
from velatura.training.run.snapshots import Snapshot, list_snapshots
from velatura.training.run.stored_verdict import VERDICT_NAME

if TYPE_CHECKING:
    from velatura.overlays.overlay import Overlay

# A1111's web UI allows letters, digits and these in file names; path separators are not among them
FORBIDDEN_IN_FILE_NAMES = re.compile(r"[^\w .-]")

# The least that the first line of a log has
HEADER_KEYS = frozenset({"base", "base_hash", "device", "dtype", "files", "folder", "over_others", "overlay", "torch"})

JsonType = TypeVar("JsonType")


@dataclass(frozen=True)
class RunFolder:
    """A run on disk. Its files are named after the overlay, as a tag in a prompt names it.

    plan.json           the plan, as Plan reads it
    data.json           the name of every picture, with a hash of it and its caption
    log.jsonl           the header, then one line for every step: loss, learning rate, seconds since the beginning
    snapshots/          inca-000100.safetensors, the overlay after 100 steps, and inca-000100.state, all else that
                        resuming there needs; inca-best.safetensors, the overlay with the lowest validation loss
    loss.png            the losses of all steps and of the validation pictures
    previews/           inca-000100.png, a picture generated after 100 steps, or several: inca-000100-1.png, ...
    previews.png        all previews, a row for each step, from the untrained overlay on
    verdict.json        what the finished run says of itself, see stored_verdict.py
    strengths.png       the final overlay at several strengths, if the plan asks for it or it is cheap
    inca.safetensors    the final overlay; it exists only when the run is finished

    The log is locked while a process uses the run.
    """

    path: Path
    name: str
    log: RunLog

    @classmethod
    @contextmanager
    def create(
        cls,
        path: str | os.PathLike[str],
        name: str,
        plan: Plan,
        header: Mapping[str, object],
        data_fingerprint: Mapping[str, str],
    ) -> Generator[Self]:
        """Yield a new run folder under a hidden name, and move it to its path when the block ends.

        The block writes the first snapshot, so that a run can be resumed from the moment its folder exists. Outside
        the block use `moved_to(path)`.

        Args:
            path: A folder that is empty or does not exist.
            name: The overlay's name.
            plan: Written to plan.json.
            header: Written to the first line of the log.
            data_fingerprint: Written to data.json.

        Raises:
            AlreadyExists: The folder holds something.
        """
        with atomic_folder(check_vacant(path)) as temp_folder:
            with atomic_write(temp_folder / "plan.json") as file:
                file.write_text(plan.model_dump_json(indent=2) + "\n", "utf-8")
            with atomic_write(temp_folder / "data.json") as file:
                file.write_text(json.dumps(data_fingerprint, indent=0, ensure_ascii=False) + "\n", "utf-8")
            folder = cls(temp_folder, file_name(name), RunLog(temp_folder / "log.jsonl"))
            try:
                folder.log.add({**header, "files": folder.name})
                yield folder
            except BaseException:
                folder.log.close()
                raise

    @classmethod
    def reopen(cls, path: str | os.PathLike[str], *, may_be_finished: bool = False) -> Self:
        """Open and lock the folder of an interrupted run, and remove temporary files that a crash left.

        Args:
            path: The folder.
            may_be_finished: Open a finished run too, to make it longer.

        Raises:
            BadFile: The path is not a run folder, or its log is damaged.
            NoEffect: The run is finished, and may not be.
            AlreadyExists: Another process is using it.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise BadFile(f"{path} does not exist{suggest_similar(path)}: name the folder that train made, runs/NAME")
        if not (path / "log.jsonl").is_file():
            raise BadFile(f"{path} is not a run folder: it has no log.jsonl; name the folder that train made")
        log = RunLog(path / "log.jsonl")
        header = (log.records() or [dict[str, object]()])[0]
        name = str(header.get("files"))
        if not header.keys() >= HEADER_KEYS or file_name(name) != name:  # another name could lead out of the folder
            log.close()
            raise BadFile(f"{log.path} has no valid header, so the run cannot be resumed: train anew")
        folder = cls(path, name, log)
        if folder.overlay.exists() and not may_be_finished:
            log.close()
            raise NoEffect(
                f"this run is finished, its overlay is {folder.overlay}: there is nothing to resume; "
                f"`velatura show {path}` gives its verdict, --steps N makes it longer"
            )
        for leftover in [*path.glob(f"{TEMP_PREFIX}*"), *path.glob(f"*/{TEMP_PREFIX}*")]:
            shutil.rmtree(leftover, ignore_errors=True)
        return folder

    def lengthen(self, steps: int) -> None:
        """Give the run more steps; the overlay of a finished run becomes a file of snapshots/.

        Args:
            steps: The steps of the whole run.

        Raises:
            BadPlan: The run has taken that many steps already, or its learning rate ends before.
        """
        taken, plan = len(self.losses()), self.plan
        if steps <= taken:
            raise BadPlan(
                f"this run has taken {quantity(taken, 'step')}: to make it longer, give more, as --steps {2 * taken}"
            )
        longer = plan.replace(steps=steps)
        if longer.rates().end <= taken:
            raise BadPlan(
                f'the learning rate "{plan.learning_rate}" ends at step {longer.rates().end}: train the overlay '
                "further with --start and a rate of its own"
            )
        if plan.patience and self.overlay.exists():
            warn("the longer run has no patience any more: it takes all of its steps")
            longer = longer.replace(patience=0)
        last = self.snapshots[-1].step if self.snapshots else 0
        if last < taken:
            warn(
                f"the last snapshot is that of step {last}: the {quantity(taken - last, 'step')} after it "
                f"{choose_number(taken - last, 'is', 'are')} taken again"
            )
        with atomic_write(self.path / "plan.json") as file:
            file.write_text(longer.model_dump_json(indent=2) + "\n", "utf-8")
        (self.path / VERDICT_NAME).unlink(missing_ok=True)  # of the shorter run
        if self.overlay.exists():
            end = self.snapshot(taken).path
            self.overlay.replace(end if not end.exists() else end.with_stem(f"{end.stem}-end"))

    def moved_to(self, path: str | os.PathLike[str]) -> Self:
        """Return this run, with its log still locked, at the path that its folder was moved to."""
        path = Path(path).expanduser()
        return replace(self, path=path, log=self.log.moved_to(path / self.log.path.name))

    @property
    def overlay(self) -> Path:
        """Path of the final overlay."""
        return self.path / f"{self.name}.safetensors"

    @property
    def best(self) -> Path:
        """Path of the overlay with the lowest validation loss."""
        return self.path / "snapshots" / f"{self.name}-best.safetensors"

    @property
    def header(self) -> dict[str, object]:
        """First line of the log: base, data and settings that the run began with."""
        return self.log.records()[0]

    @property
    def card(self) -> Card:
        """Card of the overlay when the run began; raises BadFile if the header has none."""
        try:
            return Card.model_validate(self.header["overlay"])
        except ValidationError:
            raise BadFile(
                f"{self.log.path} has no card of the overlay, so the run cannot be resumed: train anew"
            ) from None

    @property
    def plan(self) -> Plan:
        """Plan of the run; raises BadFile if plan.json cannot be read."""
        return _read(self.path / "plan.json", Plan)

    @property
    def data_fingerprint(self) -> dict[str, str]:
        """Hashes of the pictures when the run began; raises BadFile if data.json cannot be read."""
        return _read(self.path / "data.json", dict[str, str])

    @property
    def snapshots(self) -> list[Snapshot]:
        """Complete snapshots, by step."""
        return list_snapshots(self.path / "snapshots", self.name)

    def step_records(self) -> list[dict[str, object]]:
        """Return the log's records of all steps, without those that a rescue undid."""
        records: list[dict[str, object]] = []
        for record in self.log.records():
            if "back_to" in record:
                del records[cast("int", record["back_to"]) :]
            elif "loss" in record:
                records.append(record)
        return records

    def losses(self) -> list[float]:
        """Return the loss of every step."""
        return [cast("float", record["loss"]) for record in self.step_records()]

    def validation_losses(self, part: Literal["validation", "high_noise"] = "validation") -> dict[int, float]:
        """Return the validation losses, by step.

        Args:
            part: At all noise levels, or at high noise; runs of older versions did not log the latter.
        """
        records = [record for record in self.log.records() if "validated" in record and part in record]
        return {cast("int", record["validated"]): cast("float", record[part]) for record in records}

    def seconds(self) -> float:
        """Return for how many seconds the run has trained."""
        times = [cast("float", record["seconds"]) for record in self.log.records() if "seconds" in record]
        return times[-1] if times else 0.0

    def discard(self) -> None:
        """Delete the folder of a run that took no step, so that it does not stand in the way of the next one."""
        self.log.close()
        shutil.rmtree(self.path, ignore_errors=True)

    def snapshot(self, step: int) -> Snapshot:
        """Return the snapshot of a step, whether it exists or not."""
        return Snapshot(self.path / "snapshots" / f"{self.name}-{step:06}.safetensors")

    @property
    def previews(self) -> Previews:
        """Previews of the run."""
        return Previews(self.path / "previews", self.path / "previews.png", self.name)

    def plot(
        self, losses: Sequence[float], validation_losses: Mapping[int, float], high_noise_losses: Mapping[int, float]
    ) -> None:
        """Draw the losses into loss.png."""
        with atomic_write(self.path / "loss.png") as temp_path:
            loss_plot(losses, validation_losses, high_noise_losses).save(temp_path)

    def save(self, overlay: Overlay, path: Path) -> None:
        """Write the final overlay, or the best one."""
        from velatura.formats.save import save

        with atomic_write(path) as temp_path:
            save(overlay, temp_path)


def _read(path: Path, content_type: type[JsonType]) -> JsonType:
    """Read a JSON file; raises BadFile if it is missing or holds something else."""
    try:
        return TypeAdapter(content_type).validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise BadFile(f"{path} cannot be read ({reason}): put it back as it was, or train anew") from None


def check_vacant(path: str | os.PathLike[str]) -> Path:
    """Return the path of a new run; raises AlreadyExists if it is a file or a folder that is not empty."""
    path = Path(path).expanduser()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        if (path / "log.jsonl").is_file() and not list(path.glob("*.safetensors")):
            raise AlreadyExists(
                f"{path} holds an unfinished run: continue it with `velatura resume {path}`, or name another folder"
            )
        raise AlreadyExists(f"{path} already exists; name another folder for this run, or remove that one")
    return path


def file_name(name: str) -> str:
    """Return the stem of an overlay's files: its name without what a file name cannot hold, never empty."""
    return FORBIDDEN_IN_FILE_NAMES.sub("", name).strip(" .") or "overlay"
