"""Signs of life: a file that its owner locks and writes to every few seconds, for whoever wonders whether it lives."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import IO

from storage.files import make_folder, try_lock

_COUNT = 20
"""Digits of the number of beats: every sign of life has the same length, and needs no room on a full disk."""


@contextmanager
def beating(path: Path, interval: float) -> Iterator[None]:
    """Give signs of life in a file for as long as this context lasts; then it is gone.

    Parameters
    ----------
    path : Path
        A new file.
    interval : float
        Seconds between two signs.

    Raises
    ------
    OSError
        If the file cannot be made.
    """
    make_folder(path.parent)
    with path.open("xb", buffering=0) as stream:
        ended = Event()
        thread = Thread(target=_beat, args=(stream, interval, ended), name=f"heartbeat {path.name}", daemon=True)
        try:
            try_lock(stream)
            _give_sign(stream, 0)
            thread.start()
            yield
        finally:
            path.unlink(missing_ok=True)
            ended.set()
            if thread.ident is not None:
                thread.join()


def _beat(stream: IO[bytes], interval: float, ended: Event) -> None:
    beats = 0
    while not ended.wait(interval):
        beats += 1
        # One that fails leaves the owner silent for longer; it notices when it loses its right to write.
        with suppress(OSError):
            _give_sign(stream, beats)


def _give_sign(stream: IO[bytes], beats: int) -> None:
    os.pwrite(stream.fileno(), f"{beats:0{_COUNT}}\n".encode(), 0)
    os.fsync(stream.fileno())


class Heartbeat:
    """Another process's signs of life, as they are seen from here.

    Parameters
    ----------
    path : Path
        Its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.was_heard = False
        """Whether there was a sign since it was first looked at."""
        self._seen: bytes | None = None
        self._since = 0.0
        self._age = 0.0

    def exists(self) -> bool:
        """Whether the file is there: an owner that ends in good order removes it."""
        return self.path.exists()

    def is_locked(self) -> bool | None:
        """Whether somebody holds the file; None where that cannot be told."""
        try:
            with _opened(self.path) as stream:
                locked = try_lock(stream, shared=True)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        return None if locked is None else not locked

    def silence(self, clock: Path) -> float:
        """Return for how many seconds there was no sign: since the last one, or since it was first looked at.

        Parameters
        ----------
        clock : Path
            A file of ours on the same file system that was written to just now. By its time, the age of the last sign
            is told on the clock of the file server; ours may be wrong.
        """
        try:
            with _opened(self.path) as stream:  # opened anew, or a network file system would show what it remembers
                sign = stream.read()
                age = clock.stat().st_mtime - os.fstat(stream.fileno()).st_mtime
        except OSError:
            sign, age = self._seen or b"", self._age
        now = time.monotonic()
        if sign != self._seen:
            self.was_heard = self._seen is not None
            self._seen, self._since, self._age = sign, now, max(age, 0.0)
        return self._age + now - self._since


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("r+b")
    except PermissionError:  # another user's
        return path.open("rb")
