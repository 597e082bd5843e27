"""How an MPI program is started: what all launchers have in common, and `mpiexec`.

Knows no Prefect. `tasks.slurm` and `tasks.sbatch` have the launchers of a cluster.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from bind_core.errors import BindDataError

_MPI_VARIABLES = ("PMI", "OMPI_", "HYDI_", "HYDRA_", "MPI_LOCAL", "PRTE_", "PRRTE_", "MPICH_", "MPIR_")
"""Prefixes of variables by which an MPI process knows its job; a child that inherits them believes to be in it."""

_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
KEPT_LINES = 40
"""Lines of a failed job's error output that are quoted."""
_POLL = 0.2
_GRACE = 10.0

MISMATCH_STATUS = 78
"""Exit status of ranks that find themselves in a job of another size than the one asked for."""


class JobFailedError(BindDataError):
    """An MPI job that ended with another status than 0; repeating it may help."""


class JobTimedOutError(JobFailedError):
    """A job that was ended at its time limit; repeating it helps if it had finished a part of its work."""


class JobRefusedError(BindDataError):
    """A job that cannot be run as it was asked for; repeating it does not help."""


class JobMemoryError(JobRefusedError):
    """A job that needs more memory than it was given."""


class LauncherMissingError(JobRefusedError):
    """There is nothing to start an MPI job with."""


class JobStoppedError(BindDataError):
    """An MPI job that was ended because its caller, or somebody else, asked for it."""


@dataclass(frozen=True)
class MpiJob:
    """A Python module that is to be run as MPI program."""

    module: str
    arguments: tuple[str, ...]
    ranks: int
    """Processes."""

    @property
    def program(self) -> list[str]:
        """The command of each rank."""
        # Without `-m mpi4py`, an exception on one rank leaves the others waiting for it.
        return [sys.executable, "-m", "mpi4py", "-m", self.module, *self.arguments]


@dataclass(frozen=True)
class Listener:
    """Who hears of a job, and can end it. What these functions raise ends the job and is raised by its launcher."""

    on_line: Callable[[str], None]
    """Called, maybe in another thread, with each line that the job prints to its standard output."""
    on_error_line: Callable[[str], None]
    """Likewise, with each line of its standard error, as it comes."""
    should_stop: Callable[[], bool]
    """Asked some times a second; the job is ended when it returns True."""


class Launcher(Protocol):
    """Starts a Python module as MPI program, and waits for its end."""

    attached: bool
    """Whether the job's standard input stays open as long as this process lives, so that its ranks can notice an end
    that nobody announced."""

    def run(self, job: MpiJob, listener: Listener) -> None:
        """Start a job and wait for its end.

        Parameters
        ----------
        job : MpiJob
            The program.
        listener : Listener
            Who hears of it.

        Raises
        ------
        JobFailedError
            If it ends with another status than 0; the message has the end of its error output.
        JobRefusedError
            If it cannot be run as it was asked for, or needs more than it was given.
        JobStoppedError
            If it was ended because the listener, or somebody else, said so.
        LauncherMissingError
            If there is nothing to start it with.
        Exception
            Whatever the listener raises, after the job was ended.
        """


class MpiexecLauncher:
    """Starts jobs on this machine with the `mpiexec` that belongs to the MPI library in use."""

    attached = True

    def run(self, job: MpiJob, listener: Listener) -> None:
        """Start a job and wait for its end; see `Launcher.run`."""
        run_attached([str(mpiexec()), "-n", str(job.ranks), *job.program], listener)


def run_attached(command: Sequence[str], listener: Listener) -> None:
    """Run a command that starts an MPI job as a child of this process, and wait for its end.

    Raises
    ------
    JobFailedError, JobRefusedError, JobStoppedError, LauncherMissingError, Exception
        As `Launcher.run` does.
    """
    try:
        process = subprocess.Popen(
            command,
            env=without_mpi_variables(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise LauncherMissingError(f"Cannot start {command[0]}: {error.strerror or error}.") from error
    last_errors: deque[str] = deque(maxlen=KEPT_LINES)
    failures: list[Exception] = []

    def take_error(line: str) -> None:
        last_errors.append(line)
        listener.on_error_line(line)

    readers = [
        threading.Thread(target=_read_lines, args=(process.stdout, listener.on_line, failures), daemon=True),
        threading.Thread(target=_read_lines, args=(process.stderr, take_error, failures), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        stopped = _wait(process, lambda: bool(failures) or listener.should_stop())
    finally:
        _end(process)
    for reader in readers:
        reader.join()
    if failures:
        raise failures[0]
    if stopped:
        raise JobStoppedError(f"The MPI job `{' '.join(command)}` was ended before it was done.")
    if process.returncode != 0:
        raise failure_kind(process.returncode, last_errors)(
            f"The MPI job `{' '.join(command)}` ended with status {process.returncode}. Its last words:\n"
            + "\n".join(last_errors)
        )


def failure_kind(status: int | None, last_errors: Iterable[str]) -> type[JobFailedError] | type[JobRefusedError]:
    """Return what the failure of a job means, by its exit status and the end of its error output."""
    # The status may be that of another rank, which was ended on behalf of this one.
    said = f"exit code {MISMATCH_STATUS}"
    mismatched = status == MISMATCH_STATUS or any(said in line for line in last_errors)
    return JobRefusedError if mismatched else JobFailedError


def mpiexec() -> Path:
    """Return the launcher that belongs to the MPI library of this environment.

    It is the one installed beside this Python; only if there is none, the first on the search path.

    Raises
    ------
    LauncherMissingError
        If there is none at all.
    """
    own = Path(sys.prefix) / "bin" / "mpiexec"
    found = str(own) if own.is_file() else shutil.which("mpiexec")
    if found is None:
        raise LauncherMissingError(
            f"No mpiexec beside {sys.executable} nor on the search path. Install an MPI: `pip install mpich` brings "
            "one that needs nothing else, or load the site's module."
        )
    return Path(found)


def without_mpi_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a process does not take itself for part of a running MPI job."""
    return {name: value for name, value in environment.items() if not name.startswith(_MPI_VARIABLES)}


def ranks_asked_for(environment: Mapping[str, str], found: int) -> int:
    """Return the number of ranks that this process's launcher says it started; `found` if there is no launcher.

    Parameters
    ----------
    environment : mapping
        The process's environment.
    found : int
        The size of the MPI library's own world.
    """
    for variable in _SIZE_VARIABLES:
        if environment.get(variable, "").isdecimal():
            return int(environment[variable])
    return found


def _read_lines(stream: IO[str] | None, take: Callable[[str], None], failures: list[Exception]) -> None:
    """Hand lines on until one is refused; read on to the end even then, or the job would wait for its reader."""
    if stream is None:
        return
    with stream:
        for line in stream:
            if failures:
                continue
            try:
                take(line.rstrip("\n"))
            except Exception as error:
                failures.append(error)


def _wait(process: subprocess.Popen[str], should_stop: Callable[[], bool]) -> bool:
    """Wait for the end of a process; return whether it is to be ended instead."""
    while True:
        try:
            process.wait(timeout=_POLL)
        except subprocess.TimeoutExpired:
            if should_stop():
                return True
        else:
            return False


def _end(process: subprocess.Popen[str]) -> None:
    """End a job with all its ranks, if it is still running: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE)
    if process.stdin is not None:
        process.stdin.close()
