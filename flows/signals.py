"""Signals that end a run, of which none may be lost.

A signal's handler raises, but Python has places where an exception goes nowhere: the callback of a weak reference, of
which h5py has many, or a destructor. A Ctrl-C that falls there prints a traceback, and the run would go on for hours.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ENDING = (signal.SIGINT, signal.SIGTERM)


class NotedSignals:
    """The signals that have come.

    Parameters
    ----------
    pipe : int
        A descriptor to read their numbers from; reading does not block.
    """

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def raise_lost(self) -> None:
        """Handle a signal once more that has come already; called where its exception would have ended the run."""
        with suppress(BlockingIOError):
            numbers = os.read(self._pipe, 4096)
            for number in _ENDING:
                handler = signal.getsignal(number)
                if number in numbers and callable(handler):
                    handler(number, None)


@contextmanager
def noted_signals() -> Iterator[NotedSignals]:
    """Note the signals that come, in a process whose main thread this is; what handles them stays as it is.

    Prefect tells by its own handler being in place whether it can cancel a run in order.
    """
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    in_main_thread = threading.current_thread() is threading.main_thread()
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False) if in_main_thread else -1
    try:
        yield NotedSignals(reading)
    finally:
        if in_main_thread:
            signal.set_wakeup_fd(former)
        os.close(reading)
        os.close(writing)
