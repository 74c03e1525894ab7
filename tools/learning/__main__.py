"""python -m tools.learning TASK: the factorial of trainings on the tiny base.

    run      do the trials that are missing, one after the other; stop it at any time, and start it again
    table    print the tables of the results, and write them into docs/subjects.md and docs/training.md
    sheets   paint prompts with some ways to train into docs/images/subjects-TASK.webp
    judge    print what the judge sees in pictures with an overlay (--file) at several strengths

Results are one JSON line for each trial, in tools/learning/results.jsonl. What is trained is kept in the work folder:
without its line a trial is judged again, and not trained again.
"""

import argparse
import json
import time
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .factors import TASKS
from .halving import next_trial

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
PAGES = tuple(Path(__file__).parents[2] / "docs" / name for name in ("subjects.md", "training.md"))
IMAGES = Path(__file__).parents[2] / "docs" / "images"
RESULTS = Path(__file__).parent / "results.jsonl"


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the records of all finished trials."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(work: Path, results: Path, minutes: float, tasks: Collection[str]) -> None:
    """Do the missing trials of these tasks until the time is up."""
    import torch

    import velatura
    from tools.tiny_base.judge import judge_mark, open_judge

    from .trial import run_trial

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    base, judge, mark, started = velatura.tiny(), open_judge(), judge_mark(), time.monotonic()
    while (time.monotonic() - started) < 60 * minutes and (trial := next_trial(read_results(results), mark, tasks)):
        record = {**run_trial(base, judge, trial, work), "judge": mark}
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{trial.task:10}{trial.steps:4} {trial.seed} {trial.arm}: {record['shares']}", flush=True)


def paint_sheets(work: Path) -> None:
    """Paint the sheets of docs/subjects.md."""
    import velatura

    from .factors import SHEETS
    from .trial import paint_sheet

    base = velatura.tiny()
    for task, sheet in SHEETS.items():
        paint_sheet(base, work, sheet).save(IMAGES / f"subjects-{task}.webp", quality=70)


def judge_file(file: Path, task: str, work: Path, *, call: str, count: int) -> None:
    """Print the shares of pictures with an overlay at each strength."""
    import velatura
    from tools.tiny_base.judge import open_judge

    from .trial import judge_overlay

    base, judge, overlay = velatura.tiny(), open_judge(), velatura.open_overlay(file)
    for strength in STRENGTHS:
        shares = judge_overlay(base, judge, overlay, task, call=call, strength=strength, count=count)
        print(f"{strength:4}", *(f"{name} {share:.2f}" for name, share in shares.items()), flush=True)


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("run", "table", "sheets", "judge"))
    parser.add_argument("--work", type=Path, default=Path("runs/learning"), help="folder of overlays and pictures")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=600, help="start no trial after this time")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=TASKS,
        choices=TASKS,
        help="run only these; the robot and all styles can be learned by two commands at once",
    )
    parser.add_argument("--file", type=Path, help="overlay to judge")
    parser.add_argument("--learned", default="neon", choices=TASKS, help="what it was trained on")
    parser.add_argument("--call", default="", help="words before every prompt, to call it by its name")
    parser.add_argument("--count", type=int, default=100, help="prompts")
    options = parser.parse_args()
    if options.task == "run":
        run(options.work, options.results, options.minutes, options.tasks)
        return
    if options.task == "sheets":
        paint_sheets(options.work)
        return
    if options.task == "judge":
        if options.file is None:
            parser.error("judge needs --file, the overlay to judge")
        judge_file(options.file, options.learned, options.work, call=options.call, count=options.count)
        return
    from .tables import fill_tables, print_tables

    results = read_results(options.results)
    print_tables(results)
    for page in PAGES:
        page.write_text(fill_tables(page.read_text("utf-8"), results), "utf-8")


if __name__ == "__main__":
    main()
