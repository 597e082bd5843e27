"""What the ranks of an MPI job say to people: lines on standard error that name the rank and the simulation.

Python's warnings and log records of any library take the same form. Knows no Prefect.
"""

import logging
import os
import re
import sys
import threading
import warnings
from typing import TextIO

_SAID = re.compile(r"(WARNING|ERROR) rank \d+(, \S+)?: ")


class RankMessages:
    """The messages of one rank.

    Parameters
    ----------
    rank : int
        Number of the rank.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._simulation = ""

    def begin(self, simulation: str) -> None:
        """Take messages from now on to be about a simulation."""
        self._simulation = simulation

    def say(self, level: int, message: str, simulation: str | None = None) -> None:
        """Write a message to standard error, in one line and one piece.

        Parameters
        ----------
        level : int
            As in `logging`; from ``logging.ERROR`` on it is an error, else a warning.
        message : str
            The message; line breaks become ``|``.
        simulation : str, optional
            Which one it is about; by default the one that was begun.
        """
        about = self._simulation if simulation is None else simulation
        who = f"rank {self._rank}, {about}" if about else f"rank {self._rank}"
        kind = "ERROR" if level >= logging.ERROR else "WARNING"
        text = " | ".join(line.strip() for line in message.splitlines() if line.strip())
        sys.stderr.flush()
        os.write(sys.stderr.fileno(), f"{kind} {who}: {text}\n".encode(errors="replace"))

    def collect(self) -> None:
        """Say from now on what Python warns of, and what libraries log as warnings or worse."""
        warnings.showwarning = self._show_warning
        logging.getLogger().addHandler(_Handler(self))

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        self._say_aside(logging.WARNING, f"{category.__name__}: {message} ({filename}, line {lineno})")

    def _say_aside(self, level: int, message: str) -> None:
        # Another thread is reading the next simulation.
        own = threading.current_thread() is threading.main_thread()
        self.say(level, message, None if own else "")


class _Handler(logging.Handler):
    def __init__(self, messages: RankMessages) -> None:
        super().__init__(logging.WARNING)
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages._say_aside(record.levelno, f"{record.name}: {self.format(record)}")


def level_of(line: str) -> int:
    """Return the level, as in `logging`, of a line that a job wrote to its standard error."""
    said = _SAID.match(line)
    return logging.ERROR if said is not None and said[1] == "ERROR" else logging.WARNING
