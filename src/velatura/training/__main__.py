"""`accelerate launch -m velatura.training hypernet photos/ ...`: what `velatura train` does, in several processes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout

from velatura.cli.app import INTERRUPTED, main


def run(words: Sequence[str]) -> int:
    """Run a command line: the words of `velatura train`, or of `velatura resume` with that word first.

    Of several processes the first one alone speaks; another one only says why it broke off.
    """
    words = [*([] if words[:1] in (["resume"], ["train"]) else ["train"]), *words]
    rank = int(os.environ.get("RANK", "0"))
    _take_own_gpu()
    try:
        if not rank:
            return main(words)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as said:
            status = main(words)
        if status not in {0, INTERRUPTED}:
            sys.stderr.write(f"process {rank}: {said.getvalue().strip().splitlines()[-1]}\n")
        return status
    finally:
        _leave()


def _take_own_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _leave() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
