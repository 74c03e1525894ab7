"""A run from its first step to its last, or from a snapshot on: taught, watched, kept."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from velatura.card import Card
from velatura.errors import NanLatents, TrainingDiverged, VelaturaError, VelaturaWarning
from velatura.overlays.overlay import Overlay
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.guard import LossMonitor
from velatura.training.kinds.a1111_export import write_a1111, write_loss_table
from velatura.training.run.folder import RunFolder
from velatura.training.run.snapshots import Progress, Snapshot
from velatura.training.run.tensorboard import TensorBoard
from velatura.training.signals import catch_signals
from velatura.training.trainer import Trainer
from velatura.training.validation import ValidationSet


@dataclass(frozen=True)
class Step:
    """What a training step came to; `done` counts it in."""

    done: int
    total: int
    loss: float
    rate: float


@dataclass(frozen=True)
class Run:
    """A training that is over: the overlay it made, its file, the loss of every step, and the folder it left.

    validations are the losses on the fixed pictures by step, best is the file of the lowest of them.
    """

    overlay: Overlay
    file: Path
    losses: list[float]
    folder: Path
    validation_losses: dict[int, float] = field(default_factory=dict[int, float])
    best: Path | None = None


@dataclass
class TrainingLoop:
    """The state of a run; `losses` are those of the steps that count, without those that were taken back."""

    trainer: Trainer
    validation_set: ValidationSet | None
    preview_recipes: list[Recipe] = field(default_factory=list[Recipe])  # of previews
    on_step: Callable[[Step], None] | None = None
    losses: list[float] = field(default_factory=list[float])
    validation_losses: dict[int, float] = field(default_factory=dict[int, float])
    monitor: LossMonitor = field(default_factory=LossMonitor)
    previous_seconds: float = 0.0  # before this process

    def begin(
        self, out: str | os.PathLike[str], header: Mapping[str, object], data_fingerprint: Mapping[str, str]
    ) -> None:
        """Make the run's folder with a snapshot of the untrained overlay, which is all that there is to go back to."""
        self._initial_card, self._plan = self.trainer.overlay.card, self.trainer.plan
        self._rates, self._part_rates = self._plan.step_rates(), self._plan.part_rates()

        def write_first_snapshot(folder: RunFolder) -> None:
            self._folder = folder
            self._save_snapshot(0, self._validate(0))

        self._folder = RunFolder.create(
            out,
            self._initial_card.name,
            self._plan,
            header,
            data_fingerprint=data_fingerprint,
            write_first_snapshot=write_first_snapshot,
        )

    def resume(self, folder: RunFolder, card: Card) -> None:
        """Take up a run where its last snapshot was made; card is the overlay's as the run began."""
        self._initial_card, self._plan, self._folder = card, self.trainer.plan, folder
        self._rates, self._part_rates = self._plan.step_rates(), self._plan.part_rates()
        last = folder.snapshots[-1]
        progress = last.progress()
        folder.log.truncate(progress.log_size)
        folder.previews.remove_after(last.step)
        self.trainer.restore(last)
        self.monitor, self.losses, self.validation_losses = progress.watch, folder.losses(), folder.validation_losses()
        times = [cast("float", record["seconds"]) for record in folder.log.records() if "seconds" in record]
        self.previous_seconds = times[-1] if times else 0.0

    def run(self) -> Run:
        """Take every step that is left; however it ends early, what was learned is kept."""
        overlay, total = self.trainer.overlay, len(self._rates)
        self._tensorboard = TensorBoard.create(self._folder.path, len(self.losses), is_enabled=self._plan.tensorboard)
        start_time = time.perf_counter() - self.previous_seconds
        overlay.train()
        try:
            with catch_signals() as stop:
                while len(self.losses) < total:
                    problem = self._take_step(start_time) or self._preview_and_validate()
                    if problem:
                        self._roll_back(problem)
                    elif self.on_step:
                        step = len(self.losses)
                        self.on_step(Step(step, total, self.losses[-1], self._rates[step - 1] * self.monitor.factor))
                    stop.check()
                    self.trainer.team.check()
                self._finish()
        except BaseException as error:
            self._save_on_error(error)
            raise
        finally:
            overlay.eval()
            self._tensorboard.close()
            self._folder.log.close()
        best = self._folder.best if self._folder.best.exists() else None
        return Run(overlay, self._folder.overlay, self.losses, self._folder.path, self.validation_losses, best)

    def _take_step(self, start_time: float) -> str:
        """Learn once and log it; returns what is wrong, in words, or nothing."""
        step = len(self.losses)
        rate = self._rates[step] * self.monitor.factor
        part_rates = {part: rates[step] * self.monitor.factor for part, rates in self._part_rates.items()}
        try:
            loss = self.trainer.training_step(step, rate, part_rates)
        except TrainingDiverged as error:
            return str(error)
        self.losses.append(loss)
        self._update_card_steps()
        seconds = time.perf_counter() - start_time
        self._folder.log.add({"step": step + 1, "loss": loss, "rate": rate, "seconds": seconds})
        self._tensorboard.add_scalars(step + 1, loss=loss, rate=rate)
        self.monitor = self.monitor.with_loss(loss)
        return self.monitor.loss_problem(self._plan.loss_limit) if self._plan.rescues else ""

    def _preview_and_validate(self) -> str:
        """Show and keep what is due after a step, if it is good; returns what is wrong with it, or nothing."""
        step = len(self.losses)
        if _is_due(self._plan.preview_every, step):
            problem = self._preview(step)
            if problem:
                return problem
        if not _is_due(self._plan.snapshot_every, step):
            return ""
        validation_loss = self._validate(step)
        if validation_loss is not None:
            self._tensorboard.add_scalars(step, validation=validation_loss)
        problem = (
            self.monitor.validation_problem(validation_loss)
            if self._plan.rescues and validation_loss is not None
            else ""
        )
        if not problem:
            self._save_snapshot(step, validation_loss)
        return problem

    def _preview(self, step: int) -> str:
        try:
            pictures = self.trainer.generate_previews(self.preview_recipes)
        except NanLatents:
            return f"the preview at step {step} is no picture any more"
        self._folder.previews.add(pictures, step)
        if self._plan.rescues and all(map(self.trainer.is_noise, pictures)):
            return f"the preview at step {step} is coloured noise"
        return ""

    def _validate(self, step: int) -> float | None:
        """Try the fixed pictures, and log what came of it."""
        if self.validation_set is None:
            return None
        loss = self.trainer.validate(self.validation_set)
        self.validation_losses[step] = loss
        self._folder.log.add({"validated": step, "validation": loss})
        return loss

    def _save_snapshot(self, step: int, validation_loss: float | None) -> Snapshot:
        """Write a snapshot, and the best one where it is that; then let go of those that are not to be kept."""
        best_step = self.monitor.best_step
        if validation_loss is not None:
            self.monitor = self.monitor.with_validation(validation_loss, step)
        if self.monitor.best_step != best_step:
            self._save(self._folder.best)
        snapshot = self._folder.snapshot(step)
        progress = Progress(step=step, log_size=self._folder.log.size, validation=validation_loss, watch=self.monitor)
        with self.trainer.evaluation_mode():
            snapshot.write(self.trainer.overlay, self.trainer.optimizer, progress, self.trainer.training_weights)
        if step:
            self._remove_old_snapshots()
            self._folder.plot(self.losses, self.validation_losses)
        return snapshot

    def _remove_old_snapshots(self) -> None:
        """Remove old snapshots: the untrained one, and what the plan does not keep, but never what is gone back to."""
        snapshots = self._folder.snapshots
        last_good = self._find_last_good(snapshots)
        newest = snapshots[-self._plan.keep_last :]
        for snapshot in snapshots:
            is_kept = snapshot in newest or _is_due(self._plan.keep_every, snapshot.step)
            if snapshot != last_good and not (snapshot.step and is_kept):
                snapshot.remove()

    def _find_last_good(self, snapshots: list[Snapshot]) -> Snapshot:
        """The last snapshot whose validation loss is near the lowest, or the first of all.

        Only those of the plan count: to where a run goes back must not depend on when it was broken off.
        """
        on_schedule = [
            snapshot for snapshot in snapshots if not snapshot.step or _is_due(self._plan.snapshot_every, snapshot.step)
        ]
        good_snapshots = [snapshot for snapshot in on_schedule if self.monitor.is_good(snapshot.progress().validation)]
        return (good_snapshots or snapshots)[-1 if good_snapshots else 0]

    def _roll_back(self, problem: str) -> None:
        """Go on from the last good snapshot at a lower rate; raises Diverged after as many times as the plan has."""
        failed_step, rescue_count, plan = len(self.losses), self.monitor.rescues, self._plan
        if not plan.rescues:
            raise TrainingDiverged(problem)
        snapshots = self._folder.snapshots
        last_good = self._find_last_good(snapshots)
        best, best_step = self.monitor.best, self.monitor.best_step
        factor = self.monitor.factor * plan.rescue_factor
        changes = {"rescues": rescue_count + 1, "factor": factor, "best": best, "best_step": best_step}
        self.monitor = last_good.progress().watch.model_copy(update=changes)
        self.trainer.restore(last_good)
        del self.losses[last_good.step :]
        self._update_card_steps()
        if rescue_count == plan.rescues:
            raise TrainingDiverged(
                f"{problem}; {rescue_count} lower rates did not help: train anew at a rate of a tenth or less"
            )
        for late_snapshot in reversed([snapshot for snapshot in snapshots if snapshot.step > last_good.step]):
            late_snapshot.remove()
        self._folder.previews.remove_after(last_good.step)
        self._folder.log.add({"back_to": last_good.step, "from": failed_step, "because": problem, "factor": factor})
        message = f"{problem}; back to step {last_good.step}, and on at {factor:g} of the planned rate"
        warnings.warn(message, VelaturaWarning, stacklevel=4)

    def _finish(self) -> None:
        """Write the overlay, and the best one, if it is that."""
        step = len(self.losses)
        if step not in self.validation_losses:
            validation_loss = self._validate(step)
            if validation_loss is not None and self.monitor.with_validation(validation_loss, step).best_step == step:
                self._save(self._folder.best)
        self._folder.plot(self.losses, self.validation_losses)
        if self._plan.a1111:
            self._save_for_a1111()
        self._save(self._folder.overlay)
        self.trainer.finalize_weights()

    def _save_for_a1111(self) -> None:
        """Before the overlay itself: once that is there, the run is over."""
        with self.trainer.evaluation_mode():
            write_a1111(self._folder.overlay.with_suffix(".pt"), self.trainer.overlay, self.trainer.optimizer)
        pictures_per_step = self._plan.batch_size * self._plan.accumulation * self.trainer.team.size
        steps_per_epoch = max(1, self.trainer.cache.picture_count // pictures_per_step)
        write_loss_table(self._folder.path, self._folder.step_records(), self._initial_card.steps, steps_per_epoch)

    def _save(self, path: Path) -> None:
        with self.trainer.evaluation_mode():
            self._folder.save(self.trainer.overlay, path)

    def _save_on_error(self, error: BaseException) -> None:
        """Keep what was learned before the run breaks off, and say where; nothing must hide why it did."""
        step = len(self.losses)
        if not step:
            self._folder.discard()
            return
        last = self._folder.snapshots[-1]
        location = f"is kept in {self._folder.snapshot(step).path}"
        try:
            if self.trainer.is_updating_weights:
                location = f"up to step {last.step} is kept in {last.path}"
            elif step not in {snapshot.step for snapshot in self._folder.snapshots}:
                self._save_snapshot(step, None)
        except (OSError, VelaturaError) as failure:
            reason = "" if str(failure) == str(error) else f" ({failure})"
            location = f"could not be kept{reason}; the last good snapshot is {last.path}"
        error.add_note(f"what {step} of {len(self._rates)} steps learned {location}")
        error.add_note(f"velatura resume {self._folder.path} goes on")

    def _update_card_steps(self) -> None:
        self.trainer.overlay.card = self._initial_card.replace(steps=self._initial_card.steps + len(self.losses))


def _is_due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
