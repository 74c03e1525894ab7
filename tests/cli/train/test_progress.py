"""The progress of a training: few lines for a log file, and a bar that says what is done."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from velatura.cli.train.progress import TrainingBar, TrainingLines
from velatura.training.run.report import Stage, Step


@pytest.fixture
def lines():
    """Return lines with a clock that is set by hand, and what they printed."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock, printed = Clock(), []
    return TrainingLines(clock, printed.append), clock, printed


def take(lines, total, first=1):
    for done in range(first, total + 1):
        lines.on_step(Step(done, total, 0.5, 1e-3))


def test_a_long_run_prints_a_line_every_twentieth(lines):
    log, _, printed = lines
    take(log, 1000)
    assert len(printed) == 20
    assert printed[0] == "training: step 50 of 1000, loss 0.5000"
    assert printed[-1].startswith("training: step 1000 of 1000")


def test_a_resumed_run_counts_from_where_it_goes_on(lines):
    log, _, printed = lines
    take(log, 1000, first=951)
    assert printed == ["training: step 1000 of 1000, loss 0.5000"]


def test_slow_steps_print_a_line_every_half_minute(lines):
    log, clock, printed = lines
    for done in range(1, 10):
        clock.now += 10
        log.on_step(Step(done, 100000, 0.25, 1e-3))
    assert [line.split()[2] for line in printed] == ["3", "6", "9"]


def test_pictures_print_lines_only_if_they_take_long(lines):
    log, clock, printed = lines
    for done in range(1, 17):
        log.on_stage(Stage("preparing pictures", done, 16))
    assert printed == []
    clock.now += 31
    log.on_stage(Stage("preparing pictures", 3, 500))
    log.on_stage(Stage("painting previews", 0, 2))
    log.on_stage(Stage("painting strengths", 0, 1))
    assert printed == ["preparing pictures: 3 of 500", "painting strengths"]


def test_a_stage_that_had_a_line_has_one_at_its_end(lines):
    log, clock, printed = lines
    clock.now += 31
    log.on_stage(Stage("preparing pictures", 39, 40))
    log.on_stage(Stage("preparing pictures", 40, 40))
    log.on_stage(Stage("painting previews", 2, 2))
    assert printed == ["preparing pictures: 39 of 40", "preparing pictures: 40 of 40"]


def test_the_bar_says_what_is_done_and_never_nan():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    columns = [TextColumn("{task.description} {task.completed}/{task.total} {task.fields[loss]}")]
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        bar = TrainingBar(progress)
        shown = []
        for report in (
            Stage("preparing pictures", 3, 12),
            Step(1, 40, 0.5, 1e-3),
            Step(2, 40, 0.3, 1e-3),
            Stage("painting previews", 0, 2),
            Step(3, 40, 0.4, 1e-3),
        ):
            (bar.on_stage if isinstance(report, Stage) else bar.on_step)(report)
            task = progress.tasks[0]
            shown.append((task.description, task.completed, task.total, task.fields["loss"]))
    assert shown == [
        ("preparing pictures", 3, 12, ""),
        ("training", 1, 40, "loss 0.5000"),
        ("training", 2, 40, "loss 0.4000"),
        ("painting previews", 2, 40, "loss 0.4000"),
        ("training", 3, 40, "loss 0.4000"),
    ]
    assert "nan" not in screen.getvalue()
