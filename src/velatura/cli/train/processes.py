"""A command line in several processes: start them with torch's launcher, and behave as one of them."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from velatura.cli.screen import print_error
from velatura.errors import BadPlan

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

MAX_PROCESSES = 64
STOP_SECONDS = 300  # for the step, and a snapshot that may be as large as the base, before a process is killed
LAUNCHER_SIGNALS = ("SIGINT", "SIGTERM")
INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells count
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"  # where torch's launchers look for a process's reason


def launch(words: Sequence[str], count: int) -> int:
    """Run `velatura WORDS` in several processes on this machine, as `torchrun` does, and return the exit status.

    The main process prints. If it could not say why it ended, the reason of the process that failed first is
    printed. Signals are passed on, and one process that fails ends all.

    Args:
        words: The command line after `velatura`.
        count: How many processes, 1 to 64.
    """
    if not 1 <= count <= MAX_PROCESSES:
        raise BadPlan(f"{count} processes cannot train together: choose 1 to {MAX_PROCESSES}, one for each GPU")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with TemporaryDirectory(prefix="velatura-") as folder, _launcher_settings(count):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            logs_specs=DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, count), Std.ALL)),
            run_id="velatura",
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            signals_to_handle=",".join(LAUNCHER_SIGNALS),
            shutdown_timeout=STOP_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "velatura", *words)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            return _report(Path(folder), _exit_status(failure), _reason(rank, count, failure))
        except SignalException:
            return _report(Path(folder), INTERRUPTED_STATUS, "interrupted")
    return 0


def run_as_one_of_several(run: Callable[[], int]) -> int:
    """Run a command line in a process that `launch`, accelerate or torchrun started.

    The main process prints as always, the others are silent. The reason of a failure goes where torch's launcher looks
    for it, or to stderr if another launcher started this process.

    Args:
        run: Runs the command line and returns its exit status.
    """
    rank, stderr = int(os.environ.get("RANK", "0")), io.StringIO()
    _select_gpu()
    try:
        with ExitStack() as silence:
            if rank:
                silence.enter_context(redirect_stdout(io.StringIO()))
                silence.enter_context(redirect_stderr(stderr))
            status = run()
        if status:
            lines = stderr.getvalue().strip().splitlines()
            _record_failure(rank, status, lines[-1] if lines else "the main process printed the reason")
    except BaseException as error:
        _record_failure(rank, 1, f"{type(error).__name__}: {error}")
        raise
    finally:
        _leave_process_group()
    return status


@contextmanager
def _launcher_settings(count: int) -> Generator[None]:
    """Divide the cores among the processes, and undo all that torch's launcher changes in this process."""
    environment = dict(os.environ)
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in LAUNCHER_SIGNALS}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    logging.disable(logging.CRITICAL)  # its reports of every failed process; one line is enough
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        for name, handler in handlers.items():
            signal.signal(getattr(signal, name), handler)
        os.environ.clear()
        os.environ.update(environment)


def _report(folder: Path, status: int, reason: str) -> int:
    """Print why the processes ended, unless the main one has said so, and return the exit status of the whole."""
    for path in folder.rglob("0/error.json"):
        return json.loads(path.read_text("utf-8"))["status"]
    print_error(reason)
    return status


def _exit_status(failure: ProcessFailure) -> int:
    return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode  # as shells count signals


def _reason(rank: int, count: int, failure: ProcessFailure) -> str:
    if Path(failure.error_file).is_file():
        return failure.message
    if failure.exitcode < 0:
        return f"error: process {rank} of {count} was ended by {failure.signal_name()}: resume the run"
    return f"error: process {rank} of {count} ended with status {failure.exitcode}: resume the run"


def _record_failure(rank: int, status: int, reason: str) -> None:
    """Tell torch's launcher why this process fails; without one, say it on stderr."""
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if path:
        content = {"message": reason, "timestamp": int(time.time()), "status": status}
        Path(path).write_text(json.dumps(content), "utf-8")
    elif rank:
        print_error(f"process {rank}: {reason}")


def _select_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _leave_process_group() -> None:
    import torch

    distributed: Any = torch.distributed  # hardly typed
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
