"""python -m tools.learning TASK: the factorial of trainings on the tiny base.

    run      do the trials that are missing, one after the other; stop it at any time, and start it again
    table    print the tables of docs/subjects.md and docs/training.md

`python -m tools.tiny_base small-judge --work WORK` trains the classifier first. Results are one JSON line for each
trial, in tools/learning/results.jsonl.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

from .halving import next_trial

RESULTS = Path(__file__).parent / "results.jsonl"


def read_results(path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the records of all finished trials."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(work: Path, results: Path, minutes: float) -> None:
    """Do the missing trials until the time is up."""
    import torch

    import velatura
    from tools.tiny_base.judge import trained_judge

    from .trial import run_trial

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    base, judge, started = velatura.tiny(), trained_judge(work, small=True), time.monotonic()
    while (time.monotonic() - started) < 60 * minutes and (trial := next_trial(read_results(results))):
        record = run_trial(base, judge, trial, work)
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{trial.task:10}{trial.steps:4} {trial.seed} {trial.arm}: {record['shares']}", flush=True)


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("run", "table"))
    parser.add_argument("--work", type=Path, default=Path("runs/learning"), help="folder of the judge and of pictures")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--minutes", type=float, default=600, help="start no trial after this time")
    options = parser.parse_args()
    if options.task == "run":
        run(options.work, options.results, options.minutes)
        return
    from .tables import print_tables

    print_tables(read_results(options.results))


if __name__ == "__main__":
    main()
