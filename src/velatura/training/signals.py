"""Being told to stop: a step is never broken off in the middle, unless that is asked for twice."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Whether a stop was asked for, by which signal."""

    def __init__(self) -> None:
        self.signal_name = ""

    def record_signal(self, number: int, _frame: FrameType | None) -> None:
        """Remember the first signal; the second one breaks off at once."""
        if self.signal_name:
            raise KeyboardInterrupt(self.signal_name)
        self.signal_name = signal.Signals(number).name

    def check(self) -> None:
        """Stop here if that was asked for."""
        if self.signal_name:
            raise KeyboardInterrupt(self.signal_name)


@contextmanager
def catch_signals() -> Generator[StopSignal]:
    """Hear SIGINT and SIGTERM in the main thread, where Python hears them at all; those that are ignored stay so."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old_handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handlers = {number: old for number, old in old_handlers.items() if old not in {signal.SIG_IGN, None}}
    for number in handlers:
        signal.signal(number, stop.record_signal)
    try:
        yield stop
    finally:
        for number, old in handlers.items():
            signal.signal(number, old)
