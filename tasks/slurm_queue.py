"""What is asked and told of SLURM's queue: jobs submitted, found, looked at and cancelled. Knows no Prefect."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bind_core.errors import BindDataError
from tasks.launchers import JobFailedError, JobRefusedError, LauncherMissingError
from tasks.slurm import ask

_COMMAND_TIMEOUT = 120.0
_ENDED = {
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"),
    *("DEADLINE", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"),
}
_MAY_PASS = re.compile(
    r"unable to contact|timed out|temporarily|connection refused|submit limit|MaxSubmit|try again|communication", re.I
)
_LOOK_BACK = "now-7days"


class JobOutOfSightError(JobFailedError):
    """A job of which nothing is known, since SLURM does not answer; it may be running, and the next attempt looks."""


class QueueUnreachableError(BindDataError):
    """SLURM does not answer, which says nothing about a job."""


@dataclass(frozen=True)
class JobState:
    """What SLURM says of a job."""

    state: str
    """As in the manual of `squeue`, e.g. ``RUNNING``."""
    exit_code: str = ""
    """Status and signal, e.g. ``1:0``."""
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more, nor ever will."""
        return self.state in _ENDED


class SlurmQueue:
    """The queue of the cluster at hand."""

    def __init__(self) -> None:
        self._accounting = True

    def submit(self, script: Path) -> str:
        """Submit a job script and return the job's number.

        Raises
        ------
        JobRefusedError
            If SLURM will not take it.
        JobOutOfSightError
            If SLURM does not take it now, or does not say whether it did.
        LauncherMissingError
            If there is no sbatch.
        """
        try:
            asked = _run("sbatch", "--parsable", str(script))
        except QueueUnreachableError as error:
            raise JobOutOfSightError(f"SLURM did not answer when the job {script} was submitted: {error}") from error
        if asked.returncode == 0:
            return asked.stdout.strip().splitlines()[-1].split(";")[0]
        said = (asked.stderr or asked.stdout).strip()
        if _MAY_PASS.search(said):
            raise JobOutOfSightError(f"SLURM did not take the job {script} now: {said}")
        raise JobRefusedError(
            f"SLURM refuses the job {script}: {said}\nCorrect what slurm_job or ranks ask for: "
            "`bind-data generate --print-job-script` shows it."
        )

    def state(self, number: str) -> JobState | None:
        """Return the state of a job, or None if SLURM knows no such job, as some minutes after its end.

        Raises
        ------
        QueueUnreachableError
            If SLURM does not answer.
        """
        return self._accounted_state(number) or self._controlled_state(number)

    def find(self, name: str) -> str | None:
        """Return the number of the newest job of a name, or None if SLURM knows none.

        Raises
        ------
        QueueUnreachableError
            If SLURM does not answer.
        """
        asked = _run("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%A")
        if asked.returncode != 0:
            raise QueueUnreachableError(f"squeue does not answer: {asked.stderr.strip()}")
        rows = asked.stdout.split() or self._accounted(f"--name={name}", f"--starttime={_LOOK_BACK}")
        numbers = [int(row.split("|")[0]) for row in rows if row.split("|")[0].isdecimal()]
        return str(max(numbers)) if numbers else None

    def cancel(self, number: str) -> None:
        """Ask for the end of a job; one that has ended is left alone.

        Raises
        ------
        QueueUnreachableError
            If SLURM does not answer.
        """
        asked = _run("scancel", number)
        if asked.returncode != 0 and "invalid job id" not in asked.stderr.lower():
            raise QueueUnreachableError(f"scancel {number}: {asked.stderr.strip()}")

    def _accounted_state(self, number: str) -> JobState | None:
        rows = [row.split("|") for row in self._accounted(f"--jobs={number}")]
        states = {row[0]: JobState(row[1].split()[0], row[2]) for row in rows if len(row) == 3 and row[1]}
        job = states.get(number)
        # A step that ran out of memory may leave a job that only failed.
        short = [state for state in states.values() if state.state == "OUT_OF_MEMORY"]
        return short[0] if short and job is not None and job.ended else job

    def _accounted(self, *selection: str) -> list[str]:
        """Return rows of the accounting, or nothing where there is none or it does not answer."""
        if not self._accounting:
            return []
        try:
            asked = _run("sacct", "--noheader", "--parsable2", "--format=JobIDRaw,State,ExitCode", *selection)
        except (LauncherMissingError, QueueUnreachableError):
            return []
        self._accounting = "accounting storage is disabled" not in asked.stderr.lower()
        return asked.stdout.splitlines() if asked.returncode == 0 else []

    def _controlled_state(self, number: str) -> JobState | None:
        asked = _run("scontrol", "--oneliner", "show", "job", number)
        if asked.returncode != 0:
            if "invalid job id" in (asked.stderr + asked.stdout).lower():
                return None
            raise QueueUnreachableError(f"scontrol show job {number}: {asked.stderr.strip()}")
        facts = dict(re.findall(r"(?:^|\s)(JobState|ExitCode|Reason)=(\S*)", asked.stdout))
        return JobState(facts.get("JobState", ""), facts.get("ExitCode", ""), facts.get("Reason", ""))


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return ask(command, _COMMAND_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise QueueUnreachableError(f"{command[0]} did not answer within {_COMMAND_TIMEOUT:g} s.") from error
    except OSError as error:
        raise LauncherMissingError(
            f"Cannot run {command[0]}: {error.strerror or error}. launcher: sbatch needs SLURM's commands: run this "
            "where they are, or load their module."
        ) from error
