"""What SLURM's commands answer, read from answers as they come on clusters with and without accounting."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.launchers import JobRefusedError, LauncherMissingError
from tasks.slurm import interface_of, outside_of_jobs
from tasks.slurm_queue import JobOutOfSightError, JobState, QueueUnreachableError, SlurmQueue

Answers = Callable[..., None]

SHOWN = "JobId=7 JobName=x JobState=RUNNING Reason=None Dependency=(null) ExitCode=0:0 Command=/a b/job.sh"


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Return a function that puts a command with a fixed answer on the search path."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def answer(command: str, said: str = "", complained: str = "", status: int = 0) -> None:
        (tmp_path / f"{command}.out").write_text(said)
        (tmp_path / f"{command}.err").write_text(complained)
        script = tmp_path / command
        script.write_text(
            f'#!/bin/sh\necho "$@" >>"$0.asked"\ncat "$0.out"\ncat "$0.err" >&2\nexit {status}\n', encoding="utf-8"
        )
        script.chmod(0o755)

    return answer


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        ("7|RUNNING|0:0\n7.batch|RUNNING|0:0\n", JobState("RUNNING", "0:0")),
        ("7|COMPLETED|0:0\n7.batch|COMPLETED|0:0\n7.0|COMPLETED|0:0\n", JobState("COMPLETED", "0:0")),
        ("7|CANCELLED by 1000|0:0\n7.batch|CANCELLED|0:15\n", JobState("CANCELLED", "0:0")),
        ("7|FAILED|137:0\n7.batch|FAILED|137:0\n7.0|OUT_OF_MEMORY|0:125\n", JobState("OUT_OF_MEMORY", "0:125")),
        ("7|RUNNING|0:0\n7.0|OUT_OF_MEMORY|0:125\n", JobState("RUNNING", "0:0")),
    ],
)
def test_the_accounting_is_asked_first(answers: Answers, rows: str, state: JobState) -> None:
    """Where there is accounting, it says how a job stands, and whether one of its steps ran out of memory."""
    answers("sacct", rows)
    answers("scontrol", complained="must not be asked", status=9)
    assert SlurmQueue().state("7") == state


def test_without_accounting_the_controller_is_asked(answers: Answers, tmp_path: Path) -> None:
    """Where accounting is off, the controller answers, and accounting is not asked again."""
    answers("sacct", complained="Slurm accounting storage is disabled\n", status=1)
    answers("scontrol", SHOWN)
    queue = SlurmQueue()
    for _ in range(3):
        assert queue.state("7") == JobState("RUNNING", "0:0", "None")
    assert len((tmp_path / "sacct.asked").read_text().splitlines()) == 1


def test_a_job_that_accounting_does_not_have_yet_is_asked_of_the_controller(answers: Answers) -> None:
    """Accounting is late with new jobs, and may be out of order; the controller answers then."""
    answers("sacct", "")
    answers("scontrol", SHOWN)
    assert SlurmQueue().state("7") == JobState("RUNNING", "0:0", "None")
    answers("sacct", complained="sacct: error: Problem talking to the database", status=1)
    assert SlurmQueue().state("7") == JobState("RUNNING", "0:0", "None")


def test_a_job_that_nobody_knows_is_told_from_a_silent_slurm(answers: Answers) -> None:
    """A job that is forgotten has no state; a SLURM that does not answer says nothing about a job."""
    answers("sacct", "")
    answers("scontrol", complained="slurm_load_jobs error: Invalid job id specified", status=1)
    assert SlurmQueue().state("7") is None
    answers("scontrol", complained="slurm_load_jobs error: Unable to contact slurm controller", status=1)
    with pytest.raises(QueueUnreachableError, match="Unable to contact"):
        SlurmQueue().state("7")


def test_submitting_tells_refusals_from_delays(answers: Answers, tmp_path: Path) -> None:
    """What SLURM will never take is refused; where it may have taken the job, the next attempt looks for it."""
    answers("sbatch", "a greeting of the site\n4711;cluster\n")
    assert SlurmQueue().submit(tmp_path / "job.sh") == "4711"
    answers("sbatch", complained="sbatch: error: Invalid account or account/partition combination", status=1)
    with pytest.raises(JobRefusedError, match=r"Invalid account(.|\n)*--print-job-script"):
        SlurmQueue().submit(tmp_path / "job.sh")
    answers("sbatch", complained="sbatch: error: Socket timed out on send/recv operation", status=1)
    with pytest.raises(JobOutOfSightError, match="timed out"):
        SlurmQueue().submit(tmp_path / "job.sh")


def test_a_job_is_found_by_its_name(answers: Answers) -> None:
    """The newest job of a name is found in the queue, else in the accounting, else there is none."""
    answers("squeue", "12\n113\n")
    answers("sacct", "99|COMPLETED|0:0\n99.batch|COMPLETED|0:0\n")
    assert SlurmQueue().find("bind-1") == "113"
    answers("squeue", "")
    assert SlurmQueue().find("bind-1") == "99"
    answers("sacct", "")
    assert SlurmQueue().find("bind-1") is None


def test_no_slurm_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no sbatch, the message says what it is needed for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LauncherMissingError, match="launcher: sbatch needs SLURM's commands"):
        SlurmQueue().submit(tmp_path / "job.sh")


@pytest.mark.parametrize(
    ("library", "interface"),
    [
        ("MPICH Version: 5.0.2", "pmi2"),
        ("Open MPI v5.0.6, package: Open MPI root@x", "pmix"),
        ("Intel(R) MPI Library 2021.13 for Linux* OS", "pmi2"),
        ("MPI VERSION : CRAY MPICH version 8.1.28 (ANL base 3.4a2)", "cray_shasta"),
        ("MVAPICH Version : 4.0", "pmi2"),
    ],
)
def test_each_mpi_library_gets_its_interface(library: str, interface: str) -> None:
    """Which of srun's interfaces a library needs is read from what it calls itself."""
    assert interface_of(library) == interface


def test_an_unknown_mpi_library_is_said() -> None:
    """For a library that is not known, the message names the variable to set."""
    with pytest.raises(LauncherMissingError, match="SLURM_MPI_TYPE"):
        interface_of("Fast MPI 1.0")


def test_a_submitted_job_knows_nothing_of_the_one_around_it() -> None:
    """Of the job that a process is in, none of its variables go with what it submits; the user's own do."""
    around = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "9", "PMI_RANK": "0", "SLURMD_NODENAME": "n"}
    own = {"SLURM_CONF": "/etc/x", "SBATCH_ACCOUNT": "astro", "SLURM_MPI_TYPE": "pmix", "HOME": os.environ["HOME"]}
    assert outside_of_jobs(around | own) == own
