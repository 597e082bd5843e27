"""Signals that end a run, of which none may be lost.

A signal handler raises, but Python has places where an exception goes nowhere: the callback of a weak reference, which
h5py has many of, or a destructor. A Ctrl-C that falls there prints a traceback, and the run would go on for hours.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object]


class NotedSignals:
    """The signals that have come, each with what is usually done then."""

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}
        self._noted: list[int] = []

    def note(self, number: int, handler: Handler) -> Handler:
        """Return a handler that does the same as the one given, and leaves a note."""

        def noting(received: int, frame: FrameType | None) -> None:
            self._noted.append(received)
            handler(received, frame)

        self._handlers[number] = handler
        return noting

    def raise_lost(self) -> None:
        """Handle a signal once more that has come already; called where its exception would have ended the run."""
        if self._noted:
            number = self._noted.pop()
            self._handlers[number](number, None)


@contextmanager
def noted_signals() -> Iterator[NotedSignals]:
    """Note the signals that would end the run, on top of what handles them; in a main thread, which gets them all."""
    signals = NotedSignals()
    former: dict[signal.Signals, Handler] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            handler = signal.getsignal(number)
            if callable(handler):
                former[number] = handler
                signal.signal(number, signals.note(number, handler))
    try:
        yield signals
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
