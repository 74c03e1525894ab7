"""Processes on this machine that run one command line together, looked after until all of them are over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from velatura.errors import BadPlan

MAX_PROCESSES = 64
GRACE_SECONDS = 60  # seconds in which a process may keep what was learned, once another one is over before its time
POLL_SECONDS = 0.05  # seconds between two looks at them

Process = subprocess.Popen[bytes]


def process_count() -> int:
    """How many processes this one was launched with, itself included: by us, accelerate or torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_one_of_several() -> bool:
    """Whether there are others."""
    return process_count() > 1


def is_follower() -> bool:
    """Whether this process is one of several and not the first, which alone writes."""
    return is_one_of_several() and os.environ.get("RANK", "0") != "0"


def launch(arguments: Sequence[str], count: int) -> tuple[int, str]:
    """Run `python -m velatura.training` with these words in so many processes.

    Returns the exit status of the whole, and what is to be said of it that none of them could say. The first one's
    output is shown as it comes; that of another is said only if the first had nothing to say. Signals are passed on.
    """
    if not 1 <= count <= MAX_PROCESSES:
        raise BadPlan(f"{count} processes cannot train together: choose 1 to {MAX_PROCESSES}, one for each GPU")
    with TemporaryDirectory(prefix="velatura-") as folder, ExitStack() as files:
        stderr_paths = [Path(folder, f"{rank}.txt") for rank in range(count)]
        shared = _environment(count)
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "velatura.training", *arguments],
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stderr=files.enter_context(stderr_paths[rank].open("wb")) if rank else None,
                start_new_session=True,  # so that Ctrl-C comes to us alone, and is passed on once
            )
            for rank in range(count)
        ]
        try:
            with _forward_signals(processes):
                statuses = _wait_for_all(processes)
        finally:
            _end(processes, 0)
        return _exit_status(statuses, stderr_paths)


def _environment(count: int) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // count)
    ours = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return {"OMP_NUM_THREADS": str(threads), **os.environ, **ours, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@contextmanager
def _forward_signals(processes: Sequence[Process]) -> Generator[None]:
    def pass_on(number: int, _frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _wait_for_all(processes: Sequence[Process]) -> list[int]:
    """Wait until all are over; when one broke off, the others have a while to do so too. A status each."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            _end(processes, GRACE_SECONDS)
        time.sleep(POLL_SECONDS)
    return [process.wait() for process in processes]


def _end(processes: Sequence[Process], grace: float) -> None:
    """Wait a while, then end whatever is left: politely, and at last by force."""
    for number, seconds in ((None, grace), (signal.SIGTERM, min(grace, 5.0)), (signal.SIGKILL, 5.0)):
        until = time.monotonic() + seconds
        for process in processes:
            if number is not None and process.poll() is None:
                process.send_signal(number)
        while time.monotonic() < until and any(process.poll() is None for process in processes):
            time.sleep(POLL_SECONDS)


def _exit_status(statuses: Sequence[int], stderr_paths: Sequence[Path]) -> tuple[int, str]:
    if not any(statuses):
        return 0, ""
    if statuses[0] > 0:
        return statuses[0], ""
    for rank, status in enumerate(statuses):
        line = stderr_paths[rank].read_text("utf-8", "replace").strip() if rank else ""
        if status > 0 and line:
            return status, line
    rank, status = next((rank, status) for rank, status in enumerate(statuses) if status)
    number = -status if status < 0 else 0
    how = f"was ended by {signal.Signals(number).name}" if number else f"ended with status {status}"
    return 128 + number if number else status, f"error: process {rank} of {len(statuses)} {how}: resume the run"
