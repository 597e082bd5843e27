"""How the MPI program of a block is started.

Knows no Prefect.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol

from bind_core.config import LauncherName
from bind_core.errors import BindDataError

_MPI_VARIABLES = ("PMI", "OMPI_", "HYDI_", "HYDRA_", "MPI_LOCAL", "PRTE_", "PRRTE_", "MPICH_", "MPIR_")
"""Prefixes of variables by which an MPI process knows its job; a child that inherits them believes to be in it."""

_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_KEPT_LINES = 40
_POLL = 0.2
_GRACE = 10.0


class JobFailedError(BindDataError):
    """An MPI job that ended with another status than 0; repeating it may help."""


class LauncherMissingError(BindDataError):
    """There is nothing to start an MPI job with; repeating it does not help."""


class JobStoppedError(BindDataError):
    """An MPI job that was ended because its caller asked for it."""


class Launcher(Protocol):
    """Starts a Python module as MPI program, and waits for its end."""

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        ranks: int,
        on_line: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Start ``python -m module arguments`` on a number of ranks.

        Parameters
        ----------
        module : str
            The program. Its standard input stays open as long as this process lives, so that it can notice an end
            that nobody announced.
        arguments : sequence of str
            Its arguments.
        ranks : int
            Processes.
        on_line : callable
            Called, in another thread, with each line that the job prints to its standard output.
        should_stop : callable
            Asked some times a second; the job is ended when it returns True.

        Raises
        ------
        JobFailedError
            If it ends with another status than 0; the message has the end of its error output.
        JobStoppedError
            If it was ended because `should_stop` said so.
        LauncherMissingError
            If it cannot be started.
        Exception
            Whatever `on_line` or `should_stop` raises, after the job was ended.
        """


class MpiexecLauncher:
    """Starts jobs on this machine with the `mpiexec` that belongs to the MPI library in use."""

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        ranks: int,
        on_line: Callable[[str], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Start a job; see `Launcher.run`."""
        # Without `-m mpi4py`, an exception on one rank leaves the others waiting for it.
        program = [sys.executable, "-m", "mpi4py", "-m", module, *arguments]
        command = [str(mpiexec()), "-n", str(ranks), *program]
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
        last_errors: deque[str] = deque(maxlen=_KEPT_LINES)
        failures: list[Exception] = []
        readers = [
            threading.Thread(target=_read_lines, args=(process.stdout, on_line, failures), daemon=True),
            threading.Thread(target=_read_lines, args=(process.stderr, last_errors.append, failures), daemon=True),
        ]
        for reader in readers:
            reader.start()
        try:
            stopped = _wait(process, lambda: bool(failures) or should_stop())
        finally:
            _end(process)
        for reader in readers:
            reader.join()
        if failures:
            raise failures[0]
        if stopped:
            raise JobStoppedError(f"The MPI job `{' '.join(command)}` was ended before it was done.")
        if process.returncode != 0:
            raise JobFailedError(
                f"The MPI job `{' '.join(command)}` ended with status {process.returncode}. Its last words:\n"
                + "\n".join(last_errors)
            )


def launcher(name: LauncherName) -> Launcher:
    """Return the launcher of a name."""
    return {LauncherName.MPIEXEC: MpiexecLauncher()}[name]


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
