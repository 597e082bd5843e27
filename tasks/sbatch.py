"""MPI jobs as SLURM jobs of their own: the script, and the wait for its end. Knows no Prefect."""

import re
import shlex
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path

from bind_core.slurm_jobs import SlurmJobSettings
from storage.files import write_bytes
from tasks.launchers import (
    KEPT_LINES,
    JobFailedError,
    JobMemoryError,
    JobStoppedError,
    JobTimedOutError,
    LauncherMissingError,
    Listener,
    MpiJob,
    failure_kind,
)
from tasks.slurm import mpi_flags, ran_out_of_memory
from tasks.slurm_queue import JobOutOfSightError, JobState, QueueUnreachableError, SlurmQueue

_LOOK_INTERVAL = 0.5
_PATIENCE = 1800.0
"""Seconds for which SLURM may not answer before a job counts as out of sight."""
_END_TIMEOUT = 180.0

_LOST = {
    "NODE_FAIL": "one of its nodes failed",
    "BOOT_FAIL": "its nodes could not be started",
    "PREEMPTED": "another job took its place",
    "LAUNCH_FAILED": "its nodes could not start it",
    "RECONFIG_FAIL": "its nodes could not be prepared",
    "REVOKED": "another cluster took it",
}
"""States that say nothing about the job: the next attempt may be luckier."""


class SbatchLauncher:
    """Submits each job to SLURM and waits for it.

    Parameters
    ----------
    settings : SlurmJobSettings
        What the job asks for.
    folder : Path
        Where its script and its output go; all nodes must see it.
    name : str
        The job's name in the queue.
    comment : str
        What the queue says of it.
    on_submitted : callable
        Called with the job's number once it has one.
    """

    attached = False

    def __init__(
        self,
        settings: SlurmJobSettings,
        folder: Path,
        name: str,
        comment: str,
        on_submitted: Callable[[str], None] = lambda number: None,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.name = name
        self.comment = comment
        self.on_submitted = on_submitted
        self._queue = SlurmQueue()

    def run(self, job: MpiJob, listener: Listener) -> None:
        """Start a job and wait for its end; see `Launcher.run`.

        Raises
        ------
        JobTimedOutError
            If it reached its time limit.
        JobMemoryError
            If it ran out of memory.
        JobOutOfSightError
            If SLURM has not answered for long.
        """
        script = self.folder / "job.sh"
        write_bytes(script, self.script(job).encode())
        number = self._queue.submit(script)
        self.on_submitted(number)
        wait_for_job(number, self.folder, listener, self.settings.poll_interval)

    def script(self, job: MpiJob) -> str:
        """Return the script that would be submitted.

        Raises
        ------
        LauncherMissingError
            If it cannot be told how SLURM starts the ranks of the MPI library in use.
        """
        settings = self.settings
        output = str(self.folder).replace("%", "%%")
        flags = {
            "job-name": self.name,
            "comment": self.comment,
            "partition": settings.partition,
            "account": settings.account,
            "time": settings.time_limit,
            "mem": settings.memory,
            "nodes": settings.nodes,
            "ntasks": job.ranks,
            "cpus-per-task": settings.cpus_per_rank,
            "output": f"{output}/job-%j.out",
            "error": f"{output}/job-%j.err",
            "export": "ALL",
        }
        lines = [f"--{name}={_quoted(str(value))}" for name, value in flags.items() if value is not None]
        # What is lost is started again by whoever waits for it, and only the part that was not finished.
        lines.append("--no-requeue")
        lines += [_quoted_option(option) for option in settings.options]
        step = [
            *(
                "srun",
                f"--nodes={settings.nodes}",
                f"--ntasks={job.ranks}",
                f"--cpus-per-task={settings.cpus_per_rank}",
            ),
            *("--kill-on-bad-exit=1", "--input=none", *mpi_flags()),
        ]
        return "\n".join(
            [
                "#!/bin/bash",
                *(f"#SBATCH {line}" for line in lines),
                f"exec {shlex.join(step)} \\",
                f"    {shlex.join(job.program)}",
                "",
            ]
        )


def wait_for_job(number: str, folder: Path, listener: Listener, poll_interval: float) -> None:
    """Wait for the end of a job that was submitted, now or by an earlier process.

    Parameters
    ----------
    number : str
        Its number.
    folder : Path
        Where its output goes.
    listener : Listener
        Hears of it from its beginning.
    poll_interval : float
        Seconds between questions about its state.

    Raises
    ------
    JobFailedError, JobRefusedError, JobStoppedError, Exception
        As `SbatchLauncher.run` does.
    """
    queue = SlurmQueue()
    last_errors: deque[str] = deque(maxlen=KEPT_LINES)

    def take_error(line: str) -> None:
        last_errors.append(line)
        listener.on_error_line(line)

    streams = [
        _Lines(folder / f"job-{number}.out", listener.on_line),
        _Lines(folder / f"job-{number}.err", take_error),
    ]
    try:
        state = _end_of(number, queue, streams, listener, poll_interval)
    except (JobOutOfSightError, LauncherMissingError):
        raise
    except BaseException:
        _cancel(number, queue)
        raise
    for stream in streams:
        stream.finish()
    _judge(number, state, last_errors)


def _end_of(
    number: str, queue: SlurmQueue, streams: "list[_Lines]", listener: Listener, poll_interval: float
) -> JobState | None:
    """Follow a job to its end; return the state that it ended in, or None if nobody remembers."""
    answered = asked = time.monotonic()
    while True:
        for stream in streams:
            stream.read()
        if listener.should_stop():
            raise JobStoppedError(f"The SLURM job {number} was cancelled, because the run that it belongs to ends.")
        now = time.monotonic()
        if now - asked >= poll_interval:
            asked = now
            try:
                state = queue.state(number)
                answered = now
            except QueueUnreachableError as error:
                if now - answered > _PATIENCE:
                    raise JobOutOfSightError(
                        f"The SLURM job {number} is out of sight: SLURM has not answered for {_PATIENCE:g} s "
                        f"({error}). It was not cancelled; the next attempt finds it again."
                    ) from error
                continue
            if state is None or state.ended:
                return state
        time.sleep(min(_LOOK_INTERVAL, poll_interval))


def _cancel(number: str, queue: SlurmQueue) -> None:
    """Cancel a job, and wait until none of its ranks is left."""
    deadline = time.monotonic() + _END_TIMEOUT
    while time.monotonic() < deadline:
        try:
            queue.cancel(number)
            state = queue.state(number)
            if state is None or state.ended:
                return
        except QueueUnreachableError:
            pass
        time.sleep(_LOOK_INTERVAL)


def _judge(number: str, state: JobState | None, last_errors: Collection[str]) -> None:
    """Raise what the end of a job means, unless it ended well."""
    if state is None or state.state == "COMPLETED":  # whether all is there is for its results to say
        return
    what = f"The SLURM job {number} ended as {state.state}"
    text = "\n".join(last_errors)
    words = f" Its last words:\n{text}" if text else ""
    if state.state in _LOST:
        raise JobFailedError(f"{what}: {_LOST[state.state]}.{words}")
    if state.state == "OUT_OF_MEMORY" or (state.state == "FAILED" and ran_out_of_memory(text)):
        raise JobMemoryError(
            f"{what}: it needed more memory than it was given, and would again. Give it more (slurm_job.memory, per "
            f"node), or fewer ranks per node: they share the particles, but not their buffers.{words}"
        )
    if state.state in ("TIMEOUT", "DEADLINE"):
        raise JobTimedOutError(
            f"{what}: it reached its time limit. Simulations that it had finished are kept. Give it more time "
            f"(slurm_job.time_limit), more ranks, or less work (simulations_per_block).{words}"
        )
    if state.state == "CANCELLED":
        raise JobStoppedError(
            f"{what}: somebody, or a rule of the cluster, cancelled it. It is not submitted again by itself; the same "
            f"run, started again, makes the rest.{words}"
        )
    status, _, signal = state.exit_code.partition(":")
    kind = failure_kind(int(status) if status.isdecimal() else None, last_errors)
    raise kind(f"{what}, with status {status or 'unknown'} and signal {signal or 'unknown'}.{words}")


class _Lines:
    """The lines of a file that another host is writing, each handed on once."""

    def __init__(self, path: Path, take: Callable[[str], None]) -> None:
        self._path = path
        self._take = take
        self._position = 0
        self._rest = b""

    def read(self) -> None:
        """Hand on the lines that have become whole."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._position)
                new = stream.read()
        except FileNotFoundError:
            return
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace"))

    def finish(self) -> None:
        """Hand on everything that is there, the end of a line that nobody finished too."""
        self.read()
        if self._rest:
            self._take(self._rest.decode(errors="replace"))
            self._rest = b""


def _quoted(value: str) -> str:
    """Return a value as sbatch reads it from a script, where only some characters are special."""
    return value if re.fullmatch(r"[\w@%+=:,./\-]*", value) else "'" + value.replace("'", "'\"'\"'") + "'"


def _quoted_option(option: str) -> str:
    name, separator, value = option.partition("=")
    return f"{name}{separator}{_quoted(value)}"
