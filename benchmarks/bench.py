"""What `make bench` prints: how long the things that a person waits for take on this machine, on the tiny base."""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import velatura

PROMPT = "a red house on the beach at night"
REPEATS = 5
TRAINED_STEPS = 12
WARM_UP_STEPS = 2  # the first steps pay for allocations


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """The median of a few runs, after one that does not count."""
    work()
    times = [time.perf_counter()]
    for _ in range(repeats):
        work()
        times.append(time.perf_counter())
    return statistics.median(after - before for before, after in pairwise(times))


def training_step_seconds(base: velatura.Base) -> float:
    """The median time of a training step of 16 pictures, encoding and saving left out."""
    overlay = velatura.Hypernetwork.for_base(base, layers=(1, 2, 1), activation="relu", seed=0)
    plan = velatura.Plan(steps=TRAINED_STEPS, batch_size=16, learning_rate="3e-3", snapshot_every=0, tune=False)
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        pictures = velatura.tiny_pictures("neon")
        velatura.train(
            base, overlay, pictures, plan, out=Path(folder) / "run", on_step=lambda _: times.append(time.perf_counter())
        )
    return statistics.median(after - before for before, after in list(pairwise(times))[WARM_UP_STEPS:])


def rows() -> dict[str, float]:
    """Every figure by name, in seconds."""
    base = velatura.tiny()
    overlay = velatura.Hypernetwork.for_base(base, layers=(1, 2, 1), activation="relu", seed=0)

    def paint() -> object:
        return velatura.generate(base, PROMPT, steps=20, seed=7)

    def paint_with_overlay() -> object:
        with velatura.attach(base, overlay, 1.0):
            return paint()

    recipes = [velatura.Recipe(prompt=PROMPT, steps=20, seed=seed) for seed in range(4)]
    return {
        "open the tiny base": median_seconds(velatura.tiny),
        "a picture, 20 steps": median_seconds(paint),
        "the same with a hypernetwork 1,2,1": median_seconds(paint_with_overlay),
        "four pictures at once": median_seconds(lambda: velatura.generate_many(base, recipes)),
        "a training step of 16 pictures": training_step_seconds(base),
    }


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", file=sys.stderr)
    for name, seconds in rows().items():
        print(f"{name:36}{seconds * 1000:8.0f} ms")


if __name__ == "__main__":
    main()
