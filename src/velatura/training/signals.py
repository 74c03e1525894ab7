"""Being told to stop: a step is never broken off in the middle, unless that is asked for twice."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

HEARD = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a stop was asked for, by which signal."""

    def __init__(self) -> None:
        self.asked = ""

    def hear(self, number: int, _frame: FrameType | None) -> None:
        """Remember the first signal; the second one breaks off at once."""
        if self.asked:
            raise KeyboardInterrupt(self.asked)
        self.asked = signal.Signals(number).name

    def check(self) -> None:
        """Stop here if that was asked for."""
        if self.asked:
            raise KeyboardInterrupt(self.asked)


@contextmanager
def stopping() -> Generator[Stop]:
    """Hear SIGINT and SIGTERM in the main thread, where Python hears them at all; those that are ignored stay so."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in HEARD}
    heard = {number: old for number, old in before.items() if old not in {signal.SIG_IGN, None}}
    for number in heard:
        signal.signal(number, stop.hear)
    try:
        yield stop
    finally:
        for number, old in heard.items():
            signal.signal(number, old)
