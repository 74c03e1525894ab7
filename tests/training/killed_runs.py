"""Train a tiny run in child processes that are killed at random moments, and resume it until it is finished.

Prints the sha256 of the final file of an undisturbed run, that of the killed one, and how often it was killed.
"""

import hashlib
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

import velatura

PLAN = velatura.Plan(
    steps=8,
    batch_size=2,
    pixels=16,
    learning_rate="3e-3:4, 1e-3",
    snapshot_every=3,
    keep_last=1,
    validation_pictures=2,
    precision="float32",
    end_sheet=False,
    tune=False,
)


def train(base: velatura.Base, photos: Path, out: Path) -> None:
    overlay = velatura.Hypernetwork.for_base(base, activation="relu", dropout=0.2, seed=3, name="inca")
    if (out / "log.jsonl").exists():
        velatura.resume(base, out)
    else:
        velatura.train(base, overlay, photos, PLAN, out=out)


def fork(base: velatura.Base, photos: Path, out: Path) -> int:
    process = os.fork()
    if process:
        return process
    try:
        train(base, photos, out)
    except BaseException as error:  # noqa: BLE001 - a child must never go on as its parent
        sys.stderr.write(f"child: {error!r}\n")
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def main(photos: Path, folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "the tiny base was not trained on the words")
    base, generator = velatura.tiny(), random.Random(seed)
    train(base, photos, folder / "alone")  # in this process, and timed, so that kills fall all over a run
    started = time.monotonic()
    assert os.waitpid(fork(base, photos, folder / "timed"), 0)[1] == 0
    seconds, killed, file = time.monotonic() - started, 0, folder / "killed" / "inca.safetensors"
    while not file.exists():
        process = fork(base, photos, folder / "killed")
        if killed < kills:
            time.sleep(generator.uniform(0, seconds))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert killed < kills or status == 0
        killed += os.WIFSIGNALED(status)
        if file.exists() and killed < kills:  # it was too quick: once more
            assert hashes(folder / "killed") == hashes(folder / "alone")
            (folder / "killed").rename(folder / f"done {time.monotonic()}")
    sys.stdout.write(f"{hashes(folder / 'alone')} {hashes(folder / 'killed')} {killed}\n")


def hashes(run: Path) -> str:
    return hashlib.sha256((run / "inca.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
