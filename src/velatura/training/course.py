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
from velatura.errors import Diverged, NoPicture, VelaturaError, VelaturaWarning
from velatura.overlays.overlay import Overlay
from velatura.sampling.recipe import Recipe
from velatura.training.a1111 import write_a1111, write_table
from velatura.training.board import Board
from velatura.training.guard import Watch
from velatura.training.pupil import Pupil
from velatura.training.run import RunFolder
from velatura.training.signals import stopping
from velatura.training.snapshots import Progress, Snapshot
from velatura.training.validation import Examination


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
    validations: dict[int, float] = field(default_factory=dict[int, float])
    best: Path | None = None


@dataclass
class Course:
    """The state of a run; `losses` are those of the steps that count, without those that were taken back."""

    pupil: Pupil
    examination: Examination | None
    recipes: list[Recipe] = field(default_factory=list[Recipe])  # of previews
    on_step: Callable[[Step], None] | None = None
    losses: list[float] = field(default_factory=list[float])
    validations: dict[int, float] = field(default_factory=dict[int, float])
    watch: Watch = field(default_factory=Watch)
    seconds: float = 0.0  # before this process

    def begin(self, out: str | os.PathLike[str], beginning: Mapping[str, object], data: Mapping[str, str]) -> None:
        """Make the run's folder with a snapshot of the untrained overlay, which is all that there is to go back to."""
        self._card, self._plan = self.pupil.overlay.card, self.pupil.plan
        self._rates, self._part_rates = self._plan.step_rates(), self._plan.part_rates()

        def first(kept: RunFolder) -> None:
            self._kept = kept
            self._keep(0, self._examine(0))

        self._kept = RunFolder.create(out, self._card.name, self._plan, beginning, data=data, begin=first)

    def go_on(self, kept: RunFolder, card: Card) -> None:
        """Take up a run where its last snapshot was made; card is the overlay's as the run began."""
        self._card, self._plan, self._kept = card, self.pupil.plan, kept
        self._rates, self._part_rates = self._plan.step_rates(), self._plan.part_rates()
        last = kept.snapshots[-1]
        progress = last.progress()
        kept.log.cut(progress.log_size)
        kept.previews.cut(last.step)
        self.pupil.restore(last)
        self.watch, self.losses, self.validations = progress.watch, kept.losses(), kept.validations()
        timed = [cast("float", each["seconds"]) for each in kept.log.records() if "seconds" in each]
        self.seconds = timed[-1] if timed else 0.0

    def run(self) -> Run:
        """Take every step that is left; however it ends early, what was learned is kept."""
        overlay, total = self.pupil.overlay, len(self._rates)
        self._board = Board.of(self._kept.path, len(self.losses), wanted=self._plan.tensorboard)
        started = time.perf_counter() - self.seconds
        overlay.train()
        try:
            with stopping() as stop:
                while len(self.losses) < total:
                    trouble = self._take_step(started) or self._look_after()
                    if trouble:
                        self._go_back(trouble)
                    elif self.on_step:
                        done = len(self.losses)
                        self.on_step(Step(done, total, self.losses[-1], self._rates[done - 1] * self.watch.factor))
                    stop.check()
                    self.pupil.team.check()
                self._end()
        except BaseException as error:
            self._break_off(error)
            raise
        finally:
            overlay.eval()
            self._board.close()
            self._kept.log.close()
        best = self._kept.best if self._kept.best.exists() else None
        return Run(overlay, self._kept.overlay, self.losses, self._kept.path, self.validations, best)

    def _take_step(self, started: float) -> str:
        """Learn once and log it; returns what is wrong, in words, or nothing."""
        done = len(self.losses)
        rate = self._rates[done] * self.watch.factor
        others = {part: rates[done] * self.watch.factor for part, rates in self._part_rates.items()}
        try:
            loss = self.pupil.learn(done, rate, others)
        except Diverged as error:
            return str(error)
        self.losses.append(loss)
        self._count()
        seconds = time.perf_counter() - started
        self._kept.log.add({"step": done + 1, "loss": loss, "rate": rate, "seconds": seconds})
        self._board.draw(done + 1, loss=loss, rate=rate)
        self.watch = self.watch.with_loss(loss)
        return self.watch.trouble(self._plan.loss_limit) if self._plan.rescues else ""

    def _look_after(self) -> str:
        """Show and keep what is due after a step, if it is good; returns what is wrong with it, or nothing."""
        done = len(self.losses)
        if _due(self._plan.preview_every, done):
            trouble = self._preview(done)
            if trouble:
                return trouble
        if not _due(self._plan.snapshot_every, done):
            return ""
        validation = self._examine(done)
        if validation is not None:
            self._board.draw(done, validation=validation)
        trouble = self.watch.trouble_of(validation) if self._plan.rescues and validation is not None else ""
        if not trouble:
            self._keep(done, validation)
        return trouble

    def _preview(self, done: int) -> str:
        try:
            pictures = self.pupil.show(self.recipes)
        except NoPicture:
            return f"the preview at step {done} is no picture any more"
        self._kept.previews.add(pictures, done)
        if self._plan.rescues and all(map(self.pupil.is_noise, pictures)):
            return f"the preview at step {done} is coloured noise"
        return ""

    def _examine(self, done: int) -> float | None:
        """Try the fixed pictures, and log what came of it."""
        if self.examination is None:
            return None
        loss = self.pupil.examine(self.examination)
        self.validations[done] = loss
        self._kept.log.add({"validated": done, "validation": loss})
        return loss

    def _keep(self, done: int, validation: float | None) -> Snapshot:
        """Write a snapshot, and the best one where it is that; then let go of those that are not to be kept."""
        best = self.watch.best_step
        if validation is not None:
            self.watch = self.watch.with_validation(validation, done)
        if self.watch.best_step != best:
            self._save(self._kept.best)
        snapshot = self._kept.snapshot(done)
        progress = Progress(step=done, log_size=self._kept.log.size, validation=validation, watch=self.watch)
        with self.pupil.resting():
            snapshot.write(self.pupil.overlay, self.pupil.optimizer, progress, self.pupil.raw)
        if done:
            self._let_go()
            self._kept.plot(self.losses, self.validations)
        return snapshot

    def _let_go(self) -> None:
        """Remove old snapshots: the untrained one, and what the plan does not keep, but never what is gone back to."""
        there = self._kept.snapshots
        good = self._good(there)
        newest = there[-self._plan.keep_last :]
        for each in there:
            is_kept = each in newest or _due(self._plan.keep_every, each.step)
            if each != good and not (each.step and is_kept):
                each.remove()

    def _good(self, there: list[Snapshot]) -> Snapshot:
        """The last snapshot whose validation loss is near the lowest, or the first of all.

        Only those of the plan count: to where a run goes back must not depend on when it was broken off.
        """
        planned = [each for each in there if not each.step or _due(self._plan.snapshot_every, each.step)]
        good = [each for each in planned if self.watch.is_good(each.progress().validation)]
        return (good or there)[-1 if good else 0]

    def _go_back(self, trouble: str) -> None:
        """Go on from the last good snapshot at a lower rate; raises Diverged after as many times as the plan has."""
        reached, count, plan = len(self.losses), self.watch.rescues, self._plan
        if not plan.rescues:
            raise Diverged(trouble)
        there = self._kept.snapshots
        good = self._good(there)
        best, best_step = self.watch.best, self.watch.best_step
        factor = self.watch.factor * plan.rescue_factor
        changes = {"rescues": count + 1, "factor": factor, "best": best, "best_step": best_step}
        self.watch = good.progress().watch.model_copy(update=changes)
        self.pupil.restore(good)
        del self.losses[good.step :]
        self._count()
        if count == plan.rescues:
            raise Diverged(f"{trouble}; {count} lower rates did not help: train anew at a rate of a tenth or less")
        for later in reversed([each for each in there if each.step > good.step]):
            later.remove()
        self._kept.previews.cut(good.step)
        self._kept.log.add({"back_to": good.step, "from": reached, "because": trouble, "factor": factor})
        said = f"{trouble}; back to step {good.step}, and on at {factor:g} of the planned rate"
        warnings.warn(said, VelaturaWarning, stacklevel=4)

    def _end(self) -> None:
        """Write the overlay, and the best one, if it is that."""
        done = len(self.losses)
        if done not in self.validations:
            validation = self._examine(done)
            if validation is not None and self.watch.with_validation(validation, done).best_step == done:
                self._save(self._kept.best)
        self._kept.plot(self.losses, self.validations)
        if self._plan.a1111:
            self._save_for_a1111()
        self._save(self._kept.overlay)
        self.pupil.settle()

    def _save_for_a1111(self) -> None:
        """Before the overlay itself: once that is there, the run is over."""
        with self.pupil.resting():
            write_a1111(self._kept.overlay.with_suffix(".pt"), self.pupil.overlay, self.pupil.optimizer)
        images = self._plan.batch_size * self._plan.accumulation * self.pupil.team.size
        steps_an_epoch = max(1, self.pupil.cache.count // images)
        write_table(self._kept.path, self._kept.steps(), self._card.steps, steps_an_epoch)

    def _save(self, path: Path) -> None:
        with self.pupil.resting():
            self._kept.save(self.pupil.overlay, path)

    def _break_off(self, error: BaseException) -> None:
        """Keep what was learned before the run breaks off, and say where; nothing must hide why it did."""
        done = len(self.losses)
        if not done:
            self._kept.discard()
            return
        last = self._kept.snapshots[-1]
        where = f"is kept in {self._kept.snapshot(done).path}"
        try:
            if self.pupil.is_moving:
                where = f"up to step {last.step} is kept in {last.path}"
            elif done not in {each.step for each in self._kept.snapshots}:
                self._keep(done, None)
        except (OSError, VelaturaError) as failure:
            why = "" if str(failure) == str(error) else f" ({failure})"
            where = f"could not be kept{why}; the last good snapshot is {last.path}"
        error.add_note(f"what {done} of {len(self._rates)} steps learned {where}")
        error.add_note(f"velatura resume {self._kept.path} goes on")

    def _count(self) -> None:
        self.pupil.overlay.card = self._card.but(steps=self._card.steps + len(self.losses))


def _due(every: int, done: int) -> bool:
    return every > 0 and done % every == 0
