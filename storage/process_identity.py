"""Who a process is, so that another one can tell later, perhaps on another host, whether it is still alive."""

import getpass
import os
import socket
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

_PROC = Path("/proc")
_ENDED = {"Z", "X", "x"}
_STOPPED = {"T", "t"}
_STATE, _STARTED = 0, 19
"""Fields of ``/proc/<pid>/stat`` after the command's name."""


class Life(StrEnum):
    """What can be said of a process from here."""

    ALIVE = "alive"
    STOPPED = "stopped"
    """Alive, but halted by SIGSTOP or a debugger: it goes on when somebody continues it."""
    DEAD = "dead"
    OUT_OF_SIGHT = "out of sight"
    """It runs, or ran, where its process id means nothing to us."""


@dataclass(frozen=True)
class ProcessIdentity:
    """A process, told apart from all others that ever had its number."""

    user: str
    host: str
    pid: int
    boot: str
    """Which start of which machine it belongs to; empty where the system does not say."""
    namespace: int
    """In which its number counts: containers of one machine count by themselves."""
    started: int
    """When it was started, in ticks since the machine was."""

    @classmethod
    def current(cls) -> Self:
        """Return this process."""
        pid = os.getpid()
        stat = _stat_of(pid)
        return cls(user_name(), socket.gethostname(), pid, _boot(), _namespace(), int(stat[_STARTED]) if stat else 0)

    def is_of_this_machine(self) -> bool:
        """Whether it belongs to this machine since its last start, be it in another container."""
        return bool(self.boot) and self.boot == _boot()

    def life(self) -> Life:
        """Return whether it is alive, as far as this machine's table of processes tells."""
        if not self.is_of_this_machine() or self.namespace != _namespace():
            return Life.OUT_OF_SIGHT
        stat = _stat_of(self.pid)
        if not stat or int(stat[_STARTED]) != self.started or stat[_STATE] in _ENDED:
            return Life.DEAD
        return Life.STOPPED if stat[_STATE] in _STOPPED else Life.ALIVE

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}"


def user_name() -> str:
    """Return who runs this process; a number where the user has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in some containers
        return str(os.getuid())


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _namespace() -> int:
    try:
        return (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _stat_of(pid: int) -> list[str]:
    """Return what the system says of a process after its name, which may hold anything; nothing if it is not there."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
