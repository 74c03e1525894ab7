"""Print everything in one place, so that text from files and file names never reaches a terminal unescaped."""

import json
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from velatura.errors import VelaturaWarning

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

LINE_SHARE = 0.05  # of the work: without a terminal a line is printed after so much of it, or
LINE_SECONDS = 30.0  # after this time, whichever comes first, but
QUIET_SECONDS = 10.0  # not at the beginning: short work needs no lines
INVISIBLE_JOINERS = "\u200c\u200d"  # invisible, but letters of some languages and emoji are written with them


def say(*lines: object) -> None:
    """Print each value on a line of its own."""
    for line in lines:
        print(_escape_unencodable(escape(line), sys.stdout.encoding))


def say_json(text: str) -> None:
    """Print JSON without losing anything: control characters become JSON escapes."""
    is_ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    is_allowed = str.isascii if is_ascii_only else _is_harmless
    print(
        "".join(
            letter if letter == "\n" or (is_allowed(letter) and _is_harmless(letter)) else _escape_as_json(letter)
            for letter in text
        )
    )


def print_error(text: object) -> None:
    """Print the text on stderr as one line."""
    line = " ".join(part.strip() for part in str(text).splitlines())
    print(_escape_unencodable(escape(line), sys.stderr.encoding), file=sys.stderr)


def show_warning(message: Warning | str, category: type[Warning], file: str, line: int, *_more: object) -> None:
    """Print a VelaturaWarning as one plain line, and any other warning with its place, as Python does."""
    if issubclass(category, VelaturaWarning):
        print_error(f"warning: {message}")
        return
    for text in warnings.formatwarning(message, category, file, line).splitlines():
        print_error(text)


def escape(text: object) -> str:
    r"""Return the text on one line with control characters escaped, as \x1b or \u202e.

    Letters and spaces of every language stay.
    """
    return "".join(
        letter if _is_harmless(letter) else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs" or letter in INVISIBLE_JOINERS


def _escape_as_json(letter: str) -> str:
    return json.dumps(letter)[1:-1]


def _escape_unencodable(text: str, encoding: str | None) -> str:
    """Escape letters that the terminal's encoding lacks, as old Windows code pages do."""
    encoding = encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


class ProgressLines:
    """Lines about long work on stderr, for log files: one for each share of the work, or after some time.

    Args:
        label: What is being done.
        clock: Returns the time in seconds.
    """

    def __init__(self, label: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._clock = label, clock
        self._start = self._last_time = clock()
        self._last_done = 0

    def update(self, done: int, total: int | None) -> None:
        """Print a line if it is time for one, and one at the end of work that had lines; short work gets none."""
        now = self._clock()
        is_next_share = total is not None and done - self._last_done >= LINE_SHARE * total
        is_end = done == total and 0 < self._last_done < done  # else the last line says that something is left
        is_due = is_next_share or is_end or now - self._last_time >= LINE_SECONDS
        if now - self._start < QUIET_SECONDS or not is_due:
            return
        self._last_time, self._last_done = now, done
        print_error(f"{self._label}: {done}" if total is None else f"{self._label}: {done} of {total}")


@contextmanager
def progress_bar(label: str, *columns: "str | ProgressColumn") -> Generator[Callable[[int, int | None], None]]:
    """Show a progress bar on stderr if it is a terminal, and remove it at the end; else print a line now and then.

    Args:
        label: What is being done.
        columns: What stands beside the label; a bar with its share if there is nothing.

    Yields:
        A function to call with the work done and the whole work, or None where that is not known.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(label).update
        return
    shown = (label, *columns) if columns else ()
    # a pipe gets the text of stdout itself, a terminal gets it above the bar
    with Progress(*shown, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
