"""Show the progress of a training on stderr: a bar on a terminal, else a line now and then for log files."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from velatura.cli.screen import print_error
from velatura.training.distributed import is_main_process

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from velatura.training.run.report import Stage, Step

LOSS_WINDOW_STEPS = 20  # steps; the loss of one alone says little
LINE_SHARE = 0.05  # of the steps: without a terminal a line is printed after so many, or
LINE_SECONDS = 30.0  # after this time, whichever comes first


class TrainingBar:
    """Bar of pictures while they are prepared, and then of steps, with the running mean of the loss."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._losses: list[float] = []
        self._task: TaskID = progress.add_task("starting", total=None, loss="")

    def on_step(self, step: Step) -> None:
        """Show a step."""
        if not self._losses:
            self._progress.reset(self._task)  # what is left is measured by steps only
        self._losses = [*self._losses, step.loss][-LOSS_WINDOW_STEPS:]
        mean = sum(self._losses) / len(self._losses)
        self._progress.update(
            self._task, description="training", completed=step.done, total=step.total, loss=f"loss {mean:.4f}"
        )

    def on_stage(self, stage: Stage) -> None:
        """Show what is done besides steps; the count of steps stays while previews are painted."""
        self._progress.update(self._task, description=stage.name)
        if stage.name == "preparing pictures":
            self._progress.update(self._task, completed=stage.done, total=stage.total)
        self._progress.refresh()  # painting holds the thread that would draw it next


class TrainingLines:
    """Lines about steps and pictures, a few in a run of any length.

    Args:
        clock: Returns the time in seconds.
        say: Prints a line.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, say: Callable[[object], None] = print_error
    ) -> None:
        self._clock, self._say = clock, say
        self._losses: list[float] = []
        self._last_time = clock()
        self._last_done: int | None = None
        self._open_stage: str | None = None  # the last line said that some of it is left

    def on_step(self, step: Step) -> None:
        """Print a line if it is time for one, or if this is the last step."""
        self._losses = [*self._losses, step.loss][-LOSS_WINDOW_STEPS:]
        if self._last_done is None:
            self._last_done = step.done - 1  # more than 0 in a run that is resumed
        if step.done < step.total and not self._is_due(step.done - self._last_done >= LINE_SHARE * step.total):
            return
        self._last_time, self._last_done = self._clock(), step.done
        mean = sum(self._losses) / len(self._losses)
        self._say(f"training: step {step.done} of {step.total}, loss {mean:.4f}")

    def on_stage(self, stage: Stage) -> None:
        """Print a line now and then if preparing pictures takes long, and one where the sheet is begun."""
        if stage.name in {"painting strengths", "finding the best strength"} and stage.done == 0:
            self._say(stage.name)
        elif stage.done and self._is_due(stage.done == stage.total and self._open_stage == stage.name):
            self._last_time = self._clock()
            self._open_stage = stage.name if stage.done < stage.total else None
            self._say(f"{stage.name}: {stage.done} of {stage.total}")

    def _is_due(self, is_due_anyway: bool) -> bool:
        return is_due_anyway or self._clock() - self._last_time >= LINE_SECONDS


class _Silence:
    """Progress of a process that does not print."""

    def on_step(self, step: Step) -> None:
        pass

    def on_stage(self, stage: Stage) -> None:
        pass


@contextmanager
def training_progress() -> Generator[TrainingBar | TrainingLines | _Silence]:
    """Yield the progress of a training, whose `on_step` and `on_stage` go to `velatura.train`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not is_main_process():
        yield _Silence()
    elif not console.is_terminal:
        yield TrainingLines()
    else:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, *times, console=console) as progress:
            yield TrainingBar(progress)
