"""Training loop: all steps of a run, its snapshots, and rescues when it goes wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from velatura.card import Card
from velatura.errors import NanLatents, TrainingDiverged, VelaturaError, warn
from velatura.sampling.recipe.recipe import Recipe
from velatura.training.guard import LossMonitor
from velatura.training.kinds.a1111_export import write_a1111, write_loss_table
from velatura.training.run.folder import RunFolder
from velatura.training.run.report import OnStage, Run, Stage, Step
from velatura.training.run.snapshots import Progress, Snapshot, find_last_good, is_due
from velatura.training.run.stored_run import ResumePoint
from velatura.training.run.tensorboard import TensorBoard
from velatura.training.run.verdict import Verdict, a1111_command
from velatura.training.signals import catch_signals
from velatura.training.trainer import Trainer
from velatura.training.validation import ValidationSet


@dataclass
class TrainingLoop:
    """Loop over the steps of a run, with its state; all processes run the same.

    Attributes:
        path: The run folder.
        folder: The open run folder in the main process, which alone writes; None in the others.
        initial_card: The overlay's card when the run began.
        losses: The loss of every step, without those that a rescue undid.
        validation_losses, high_noise_losses: Validation losses at all noise levels and at high noise, by step.
        monitor: Watches the losses, and holds the factor by which rescues lower the learning rate.
        previous_seconds: Seconds of training before a resume.
    """

    trainer: Trainer
    path: Path
    folder: RunFolder | None
    initial_card: Card
    validation_set: ValidationSet | None = None
    preview_recipes: Sequence[Recipe] = ()
    on_step: Callable[[Step], None] | None = None
    on_stage: OnStage | None = None
    losses: list[float] = field(default_factory=list[float])
    validation_losses: dict[int, float] = field(default_factory=dict[int, float])
    high_noise_losses: dict[int, float] = field(default_factory=dict[int, float])
    monitor: LossMonitor = field(default_factory=LossMonitor)
    previous_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Compute the learning rate of every step."""
        self._plan = self.trainer.plan
        self._rates, self._part_rates = self._plan.step_rates(), self._plan.part_rates()
        self._tensorboard = TensorBoard(self.path / "tensorboard" if self.folder and self._plan.tensorboard else None)

    @classmethod
    def begin(
        cls,
        trainer: Trainer,
        path: str | os.PathLike[str],
        header: Mapping[str, object],
        data_fingerprint: Mapping[str, str],
        *,
        validation_set: ValidationSet | None = None,
        preview_recipes: Sequence[Recipe] = (),
        on_step: Callable[[Step], None] | None = None,
        on_stage: OnStage | None = None,
    ) -> Self:
        """Create the run folder, with a snapshot and previews of the untrained overlay; return the loop at step 0."""
        path, card = Path(path), trainer.overlay.card
        with ExitStack() as creation:
            new_folder = None
            if trainer.processes.is_main:
                new_folder = creation.enter_context(
                    RunFolder.create(path, card.name, trainer.plan, header, data_fingerprint)
                )
            loop = cls(trainer, path, new_folder, card, validation_set, preview_recipes, on_step, on_stage)
            loop._save_snapshot(loop._validate())
            if trainer.plan.preview_every:
                problem = trainer.processes.run_on_main(loop._save_previews)
                if problem:
                    warn(f"{problem}, before the training: the base itself paints it so")
        return replace(loop, folder=new_folder and new_folder.moved_to(path))

    @classmethod
    def resume(
        cls,
        trainer: Trainer,
        path: str | os.PathLike[str],
        folder: RunFolder | None,
        *,
        validation_set: ValidationSet | None = None,
        preview_recipes: Sequence[Recipe] = (),
        on_step: Callable[[Step], None] | None = None,
        on_stage: OnStage | None = None,
    ) -> Self:
        """Return the loop at the last snapshot of a run, and restore the trainer to it.

        Args:
            trainer: New, made by the run's plan.
            path: The run folder.
            folder: The same, opened by the main process; None in the others.
        """
        point = trainer.processes.run_on_main(lambda: ResumePoint.read(_opened(folder)))
        trainer.restore(folder and folder.snapshots[-1])
        return cls(
            trainer,
            Path(path),
            folder,
            point.initial_card,
            validation_set,
            preview_recipes,
            on_step,
            on_stage,
            losses=point.losses,
            validation_losses=point.validation_losses,
            high_noise_losses=point.high_noise_losses,
            monitor=point.monitor,
            previous_seconds=point.seconds,
        )

    def run(self) -> Run:
        """Take all steps that are left, and write the overlay.

        A run that ends early keeps a snapshot of what it has; a note of the error says where.
        """
        overlay, total = self.trainer.overlay, len(self._rates)
        start_time = time.perf_counter() - self.previous_seconds
        overlay.train()
        try:
            with catch_signals() as stop:
                while len(self.losses) < total and not self._is_out_of_patience():
                    problem = self._take_step(start_time) or self._preview() or self._validate_and_save()
                    if problem:
                        self._roll_back(problem)
                    elif self.on_step:
                        step = len(self.losses)
                        rate = self._rates[step - 1] * self.monitor.factor
                        is_stored = is_due(self._plan.snapshot_every, step)
                        self.on_step(Step(step, total, self.losses[-1], rate, is_stored))
                    self.trainer.processes.stop_together(stop.signal_name)
                return self._finish()
        except BaseException as error:
            self._save_on_error(error)
            raise
        finally:
            overlay.eval()
            self._tensorboard.close()
            if self.folder:
                self.folder.log.close()

    def _take_step(self, start_time: float) -> str:
        """Take a step and log it; return what is wrong with the losses, in words, or an empty string."""
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
        self._log({"step": step + 1, "loss": loss, "rate": rate, "seconds": seconds})
        self._tensorboard.add_scalars(step + 1, loss=loss, rate=rate)
        self.monitor = self.monitor.with_loss(loss)
        return self.monitor.loss_problem(self._plan.loss_limit) if self._plan.rescues else ""

    def _preview(self) -> str:
        """Generate previews if they are due; return what is wrong with them, in words, or an empty string."""
        if not is_due(self._plan.preview_every, len(self.losses)):
            return ""
        return self.trainer.processes.run_on_main(self._save_previews)

    def _save_previews(self) -> str:
        step = len(self.losses)
        if self.on_stage:
            self.on_stage(Stage("painting previews", 0, len(self.preview_recipes)))
        try:
            pictures = self.trainer.generate_previews(self.preview_recipes)
        except NanLatents:
            return f"the preview at step {step} is NaN or infinite"
        _opened(self.folder).previews.add(pictures, step)
        if step and self._plan.rescues and all(map(self.trainer.is_noise, pictures)):
            return f"the preview at step {step} is coloured noise"
        return ""

    def _validate_and_save(self) -> str:
        """Validate and write a snapshot if it is due; return what is wrong, in words, or an empty string."""
        step = len(self.losses)
        if not is_due(self._plan.snapshot_every, step):
            return ""
        validation_loss = self._validate()
        if validation_loss is not None:
            self._tensorboard.add_scalars(step, validation=validation_loss, high_noise=self.high_noise_losses[step])
            problem = self.monitor.validation_problem(validation_loss) if self._plan.rescues else ""
            if problem:
                return problem
        self._save_snapshot(validation_loss)
        return ""

    def _validate(self) -> float | None:
        """Compute and log the losses on the validation pictures, if there are any; return that at all noise levels."""
        validation_set = self.validation_set
        if validation_set is None:
            return None
        loss = self.trainer.processes.run_on_main(lambda: self.trainer.validate(validation_set))
        self.validation_losses[len(self.losses)], self.high_noise_losses[len(self.losses)] = loss.mean, loss.high
        self._log({"validated": len(self.losses)} | loss.record())
        return loss.mean

    def _save_snapshot(self, validation_loss: float | None) -> None:
        """Write a snapshot, and the best overlay if this is it; then delete snapshots that the plan does not keep."""
        step, best_step = len(self.losses), self.monitor.best_step
        if validation_loss is not None:
            self.monitor = self.monitor.with_validation(validation_loss, step)
        if self.folder is None:
            return
        if self.monitor.best_step != best_step:
            self._save_overlay(self.folder.best)
        progress = Progress(step=step, log_size=self.folder.log.size, validation=validation_loss, watch=self.monitor)
        with self.trainer.evaluation_mode():
            self.folder.snapshot(step).write(
                self.trainer.overlay, self.trainer.optimizer, progress, self.trainer.training_weights
            )
        if step:
            self._remove_old_snapshots(self.folder.snapshots)
            self.folder.plot(self.losses, self.validation_losses, self.high_noise_losses)

    def _remove_old_snapshots(self, snapshots: Sequence[Snapshot]) -> None:
        """Delete the untrained snapshot and those that the plan does not keep, except the one to go back to."""
        last_good = find_last_good(snapshots, self.monitor, self._plan.snapshot_every)
        newest = snapshots[-self._plan.keep_last :]
        for snapshot in snapshots:
            is_kept = snapshot in newest or is_due(self._plan.keep_every, snapshot.step)
            if snapshot != last_good and not (snapshot.step and is_kept):
                snapshot.remove()

    def _roll_back(self, problem: str) -> None:
        """Go back to the last good snapshot and lower the learning rate.

        Raises:
            TrainingDiverged: The plan allows no more rescues.
        """
        failed_step, rescues = len(self.losses), self.monitor.rescues
        plan, processes = self._plan, self.trainer.processes
        if not plan.rescues:
            raise TrainingDiverged(problem)
        last_good = self.folder and find_last_good(self.folder.snapshots, self.monitor, plan.snapshot_every)
        good_step, good_monitor = processes.run_on_main(lambda: _step_and_monitor(last_good))
        factor = self.monitor.factor * plan.rescue_factor
        lowest = {"best": self.monitor.best, "best_step": self.monitor.best_step}
        self.monitor = good_monitor.model_copy(update={"rescues": rescues + 1, "factor": factor} | lowest)
        self.trainer.restore(last_good)
        del self.losses[good_step:]
        self._update_card_steps()
        if rescues == plan.rescues:
            raise TrainingDiverged(
                f"{problem}; {rescues} lower learning rates did not help: train anew with a tenth of it or less"
            )
        if self.folder:
            for snapshot in reversed(self.folder.snapshots):
                if snapshot.step > good_step:
                    snapshot.remove()
            self.folder.previews.remove_after(good_step)
        self._log({"back_to": good_step, "from": failed_step, "because": problem, "factor": factor})
        warn(f"{problem}; back to step {good_step}, with the planned learning rate times {factor:g}")

    def _finish(self) -> Run:
        """Write the overlay, and the best one if this is it."""
        step = len(self.losses)
        if step not in self.validation_losses:
            loss = self._validate()
            if loss is not None:
                self.monitor = self.monitor.with_validation(loss, step)
            if loss is not None and self.monitor.best_step == step and self.folder:
                self._save_overlay(self.folder.best)
        file, best = self.trainer.processes.run_on_main(self._write_results)
        self.trainer.finalize_weights()
        if self._result_step != step:
            self.trainer.replace_weights(self.trainer.processes.run_on_main(self._best_weights))
            self._update_card_steps(self._result_step)
        verdict = self._verdict(file, best)
        losses, high_noise_losses = self.validation_losses, self.high_noise_losses
        return Run(self.trainer.overlay, file, self.losses, self.path, losses, best, verdict, high_noise_losses)

    def _is_out_of_patience(self) -> bool:
        return self.monitor.is_out_of_patience(self._plan.patience, self._plan.snapshot_every, len(self.losses))

    @property
    def _result_step(self) -> int:
        """Step of the overlay that the run returns: the best one if the plan has patience, else the last one.

        The last one also if nothing was better than the untrained overlay.
        """
        return (self._plan.patience and self.monitor.best_step) or len(self.losses)

    def _best_weights(self) -> dict[str, Tensor]:
        return dict(Snapshot(_opened(self.folder).best).overlay().state_dict())

    def _verdict(self, file: Path, best: Path | None) -> Verdict:
        """Return what the run says of itself, without what is seen of the overlay (see run/end_sheet.py)."""
        previews, kind = self.path / "previews.png", self.trainer.overlay.kind
        a1111_file = file.with_suffix(".pt") if self._plan.a1111 else None
        return Verdict(
            file=file,
            kind=kind,
            steps=len(self.losses),
            rate=max(self._rates) * self.monitor.factor,
            finds_rate=self._plan.optimizer == "prodigy",
            rescues=self.monitor.rescues,
            validation_before=self.monitor.first,
            result_step=self._result_step,
            patience=self._plan.patience if len(self.losses) < len(self._rates) else 0,
            validation_after=self.validation_losses.get(self._result_step),
            best=best,
            best_step=self.monitor.best_step if best else None,
            best_loss=self.monitor.best if best else None,
            high_noise_before=self.high_noise_losses.get(0),
            high_noise_after=self.high_noise_losses.get(self._result_step),
            pictures=(previews,) if self._plan.preview_every else (),
            plot=self.path / "loss.png",
            a1111_file=a1111_file,
            a1111_command="" if a1111_file else a1111_command(kind, file),
        )

    def _write_results(self) -> tuple[Path, Path | None]:
        """Write what a finished run leaves; return the files of the overlay and of the best one, if there is one."""
        folder = _opened(self.folder)
        folder.plot(self.losses, self.validation_losses, self.high_noise_losses)
        if self._plan.a1111:
            self._save_for_a1111(folder)
        if self._result_step == len(self.losses):
            self._save_overlay(folder.overlay)  # last: once it exists, the run is finished
        else:
            folder.save(Snapshot(folder.best).overlay(), folder.overlay)
        return folder.overlay, folder.best if folder.best.exists() else None

    def _save_for_a1111(self, folder: RunFolder) -> None:
        with self.trainer.evaluation_mode():
            write_a1111(folder.overlay.with_suffix(".pt"), self.trainer.overlay, self.trainer.optimizer)
        pictures_per_step = self._plan.batch_size * self._plan.accumulation * self.trainer.processes.count
        steps_per_epoch = max(1, self.trainer.cache.picture_count // pictures_per_step)
        write_loss_table(folder.path, folder.step_records(), self.initial_card.steps, steps_per_epoch)

    def _save_overlay(self, path: Path) -> None:
        with self.trainer.evaluation_mode():
            _opened(self.folder).save(self.trainer.overlay, path)

    def _save_on_error(self, error: BaseException) -> None:
        """Keep a snapshot before the run ends early, and note in the error where; nothing may hide that error."""
        step, total, folder = len(self.losses), len(self._rates), self.folder
        if folder is None:
            return
        if not step:
            folder.discard()
            return
        last = folder.snapshots[-1]
        location = f"after step {step} of {total} is saved in {folder.snapshot(step).path}"
        try:
            if self.trainer.is_updating_weights:
                location = f"after step {last.step} of {total} is saved in {last.path}"
            elif step not in {snapshot.step for snapshot in folder.snapshots}:
                self._save_snapshot(None)
        except (OSError, VelaturaError) as failure:
            reason = "" if str(failure) == str(error) else f" ({failure})"
            location = f"after step {step} of {total} could not be saved{reason}; the last good snapshot is {last.path}"
        error.add_note(f"the overlay {location}")
        error.add_note(f"continue with: velatura resume {folder.path}")

    def _log(self, record: Mapping[str, object]) -> None:
        if self.folder:
            self.folder.log.add(record)

    def _update_card_steps(self, step: int | None = None) -> None:
        steps = len(self.losses) if step is None else step
        self.trainer.overlay.card = self.initial_card.replace(steps=self.initial_card.steps + steps)


def _opened(folder: RunFolder | None) -> RunFolder:
    """Return the run folder, in the main process."""
    assert folder is not None
    return folder


def _step_and_monitor(snapshot: Snapshot | None) -> tuple[int, LossMonitor]:
    """Return the step of a snapshot and the loss monitor as it was then, in the main process."""
    assert snapshot is not None
    return snapshot.step, snapshot.progress().watch
