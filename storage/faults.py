"""Faults on demand, at named steps of a run: for tests, which show that none of them costs anything.

The environment variable ``BIND_DATA_FAULT`` says which fault, where and when: ``STEP:ACTION[:PASSING][:NAME=VALUE]…``,
for instance ``between-fsync-and-rename:sigkill:2`` or ``between-samples:delay:3:seconds=0.5``. No configuration can
ask for one, and without the variable a step is one comparison.
"""

import errno
import os
import signal
import time
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Self

VARIABLE = "BIND_DATA_FAULT"
"""Environment variable that asks for a fault."""

_BALLAST = 1 << 20
_OPTIONS = ("seconds=", "folder=", "counter=", "rank=")
_RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
"""Where launchers tell a process its rank."""


class Step(StrEnum):
    """Where a run can be disturbed."""

    description: str

    def __new__(cls, value: str, description: str = "") -> Self:
        """Make a member of its name in the variable and the sentence that it carries."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.description = description
        return member

    AFTER_PLANNING = "after-planning", "It is known what is to be made, and nothing is written yet."
    WITHIN_READING = "within-reading", "A part of a snapshot's particles is in memory."
    BETWEEN_SAMPLES = "between-samples", "A sample is on disk, the next one is not."
    BETWEEN_WRITE_AND_FSYNC = "between-write-and-fsync", "A temporary file has its content, which may not be on disk."
    BETWEEN_FSYNC_AND_RENAME = "between-fsync-and-rename", "A temporary file is on disk, and not in its place."
    WITHIN_RESULT = "within-result", "A simulation's samples are made, and the file that says so is about to be."
    BETWEEN_RENAME_AND_COMMIT = "between-rename-and-commit", "All samples of a block are in place, and no row is."
    WITHIN_COMMIT = "within-commit", "A block's samples have their rows, its simulations do not."
    WITHIN_COMPACTION = "within-compaction", "A table's small files are merged, and its leftovers are still there."
    BEFORE_REPLACEMENT = "before-replacement", "The journal says which samples are about to be replaced; no row does."
    WITHIN_REPLACEMENT = "within-replacement", "Some of the samples whose rows were replaced are in place."
    WITHIN_PACKING = "within-packing", "A pack has another shard, which it does not count yet."
    BEFORE_PACK = "before-pack", "A pack is whole, and not in its place."
    WITHIN_NORMALIZATION = "within-normalization", "Some of the files of normalization statistics are of this run."
    WITHIN_REPAIR = "within-repair", "Some of the files that were elsewhere are back in place."
    WITHIN_CONDITIONS = "within-conditions", "Some of a simulation's conditions are written, their index is not."
    WITHIN_IMPORT = "within-import", "A simulation's imported samples are in place, and no row is."
    WITHIN_CONTEXT_MAPS = "within-context-maps", "A sample has its context maps, the next one lacks them."


class Action(StrEnum):
    """What happens at a step."""

    RAISE = "raise"
    """An exception that nobody expects."""
    SIGKILL = "sigkill"
    """The process ends at once."""
    SIGSTOP = "sigstop"
    """The process stands still until somebody sends SIGCONT."""
    ENOSPC = "enospc"
    """The error of a full disk."""
    FULL_DISK = "full-disk"
    """The disk of ``folder`` is filled up, and the run goes on."""
    DELAY = "delay"
    """The process sleeps for ``seconds``, by default one."""


class InjectedError(Exception):
    """What `Action.RAISE` raises."""


@dataclass(frozen=True)
class Fault:
    """A fault that is asked for."""

    step: Step
    action: Action
    passing: int = 1
    """At which passing of the step, from 1."""
    seconds: float = 1.0
    folder: Path = Path()
    """Where the disk is to be filled up."""
    counter: Path | None = None
    """File by which the passings of all processes are counted together; those of each process by default."""
    rank: int | None = None
    """The rank of an MPI job whose passings count; any process's by default."""
    _passings: "count[int]" = field(default_factory=lambda: count(1), compare=False)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Return the fault that a value of the variable asks for.

        Raises
        ------
        ValueError
            If it asks for none that there is.
        """
        try:
            step, action, *others = text.split(":")
            options = dict(word.split("=", 1) for word in others if word.startswith(_OPTIONS))
            (number,) = [word for word in others if not word.startswith(_OPTIONS)] or ["1"]
            fault = cls(
                Step(step),
                Action(action),
                passing=int(number),
                seconds=float(options.get("seconds", 1)),
                folder=Path(options.get("folder", ".")),
                counter=Path(options["counter"]) if "counter" in options else None,
                rank=int(options["rank"]) if "rank" in options else None,
            )
        except ValueError as error:
            raise ValueError(
                f"{VARIABLE}={text}: {error}. Expected STEP:ACTION[:PASSING][:NAME=VALUE], with one of the steps "
                f"{', '.join(Step)}, of the actions {', '.join(Action)} and of the names "
                "seconds, folder, counter and rank."
            ) from error
        return fault

    def is_due(self) -> bool:
        """Count a passing of the step; return whether it is the one."""
        if self.rank is not None and str(self.rank) not in map(os.environ.get, _RANK_VARIABLES):
            return False
        if self.counter is None:
            return next(self._passings) == self.passing
        file = os.open(self.counter, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, b".")
            return os.lseek(file, 0, os.SEEK_CUR) == self.passing  # the end of this process's own byte
        finally:
            os.close(file)

    def happen(self) -> None:
        """Do the action."""
        match self.action:
            case Action.RAISE:
                raise InjectedError(f"at the step {self.step}")
            case Action.ENOSPC:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case Action.FULL_DISK:
                _fill_up(self.folder)
            case Action.DELAY:
                time.sleep(self.seconds)
            case Action.SIGKILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.SIGSTOP:
                os.kill(os.getpid(), signal.SIGSTOP)


_asked = Fault.from_text(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def passing(step: Step) -> None:
    """Say that a step is reached; nothing happens unless the environment asks for a fault there."""
    if _asked is not None and _asked.step is step and _asked.is_due():
        _asked.happen()


def _fill_up(folder: Path) -> None:
    """Write until a disk takes no more."""
    with (folder / "ballast").open("ab", buffering=0) as file:
        size = _BALLAST
        while size:
            try:
                file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                size //= 2
