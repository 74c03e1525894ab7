"""`accelerate launch -m velatura.training hypernet photos/ ...`: what `velatura train` does, in several processes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from velatura.cli.app import INTERRUPTED_STATUS, main


def run(arguments: Sequence[str]) -> int:
    """Run a command line: the words of `velatura train`, or of `velatura resume` with that word first.

    Of several processes the first one alone speaks; another one only says why it broke off.
    """
    arguments = [*([] if arguments[:1] in (["resume"], ["train"]) else ["train"]), *arguments]
    rank = int(os.environ.get("RANK", "0"))
    _select_gpu()
    try:
        if not rank:
            return main(arguments)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as stderr:
            status = main(arguments)
        if status not in {0, INTERRUPTED_STATUS}:
            sys.stderr.write(f"process {rank}: {stderr.getvalue().strip().splitlines()[-1]}\n")
        return status
    finally:
        _destroy_process_group()


def _select_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _destroy_process_group() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
