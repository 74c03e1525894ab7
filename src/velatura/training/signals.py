"""SIGINT and SIGTERM during a training: the first one lets the step end, a second one interrupts it."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Record of the signal that asked for a stop.

    Attributes:
        signal_name: Its name, as "SIGINT"; empty as long as there was none.
    """

    def __init__(self) -> None:
        self.signal_name = ""

    def record_signal(self, number: int, _frame: FrameType | None) -> None:
        """Remember the first signal, and raise KeyboardInterrupt at the second."""
        if self.signal_name:
            raise KeyboardInterrupt(self.signal_name)
        self.signal_name = signal.Signals(number).name


@contextmanager
def catch_signals() -> Generator[StopSignal]:
    """Record SIGINT and SIGTERM instead of acting on them; signals that are ignored stay ignored.

    Python receives signals in the main thread only: in another one nothing is recorded.
    """
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
