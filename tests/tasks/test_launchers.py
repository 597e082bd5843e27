"""How MPI jobs are started and ended, with real ones."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from batch_runs import REPOSITORY, environment, processes, wait_for

from tasks import launchers
from tasks.launchers import (
    JobFailedError,
    JobStoppedError,
    LauncherMissingError,
    Listener,
    MpiexecLauncher,
    MpiJob,
    mpiexec,
    ranks_asked_for,
    without_mpi_variables,
)

Job = Callable[..., list[str]]
DEAF = Listener(lambda line: None, lambda line: None, lambda: False)

SURROUNDING_JOB = {
    "PMI_RANK": "3",
    "PMI_SIZE": "8",
    "PMI_FD": "99",
    "PMIX_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "8",
    "HYDI_CONTROL_FD": "98",
    "HYDRA_BOOTSTRAP": "ssh",
    "MPI_LOCALNRANKS": "8",
    "PRTE_MCA_x": "1",
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Return a function that runs source as MPI job by the launcher, and returns the lines it printed."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    name = f"job_{os.getpid()}_{tmp_path.name}"

    def run(
        source: str,
        *arguments: str,
        ranks: int = 2,
        should_stop: Callable[[], bool] = lambda: False,
        on_line: Callable[[str], None] = lambda line: None,
        on_error_line: Callable[[str], None] = lambda line: None,
    ) -> list[str]:
        (tmp_path / f"{name}.py").write_text("import os, sys, time\nfrom mpi4py import MPI\n" + source)
        lines: list[str] = []

        def take(line: str) -> None:
            lines.append(line)
            on_line(line)

        MpiexecLauncher().run(MpiJob(name, arguments, ranks), Listener(take, on_error_line, should_stop))
        return lines

    return run


def mark_of(tmp_path: Path) -> str:
    """Return what the command lines of a test's ranks have in them."""
    return f"job_{os.getpid()}_{tmp_path.name}"


# Which launcher


def test_the_mpiexec_of_this_environment_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher beside this Python is taken, whatever comes first on the search path."""
    fake = tmp_path / "mpiexec"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    own = Path(sys.prefix) / "bin" / "mpiexec"
    if own.is_file():
        assert mpiexec() == own
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "elsewhere"))
    assert mpiexec() == fake


def test_no_mpiexec_at_all_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no launcher, the message says how to get one."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LauncherMissingError, match="pip install mpich"):
        MpiexecLauncher().run(MpiJob("json", (), 1), DEAF)


def test_an_mpiexec_that_cannot_be_started_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that is no program is named, and repeating the job is no use."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mpiexec").write_text("not a program")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    with pytest.raises(LauncherMissingError, match=re.escape(str(tmp_path / "bin" / "mpiexec"))):
        MpiexecLauncher().run(MpiJob("json", (), 1), DEAF)


# The surroundings


def test_variables_of_a_surrounding_job_are_left_out() -> None:
    """A child sees nothing of the MPI job that its parent belongs to, and everything else."""
    others = {"PATH": "/bin", "SLURM_JOB_ID": "7", "MPI4PY_RC_THREADS": "0", "HOME": "/root"}
    assert without_mpi_variables(SURROUNDING_JOB | others) == others


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, 5),
        ({"PMI_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "3", "SLURM_STEP_NUM_TASKS": "1"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "2"}, 2),
        ({"PMI_SIZE": "", "OMPI_COMM_WORLD_SIZE": "many"}, 5),
        ({"SLURM_NTASKS": "64"}, 5),
    ],
)
def test_the_ranks_asked_for_are_read_from_the_launcher(variables: dict[str, str], asked: int) -> None:
    """What a launcher sets tells the size of the job; without it, or with nonsense, the library's own counts."""
    assert ranks_asked_for(variables, 5) == asked


@pytest.mark.mpi
def test_a_job_is_a_world_of_its_own(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started from inside another MPI job, the ranks form a job of the size asked for, with all arguments."""
    for name, value in SURROUNDING_JOB.items():
        monkeypatch.setenv(name, value)
    source = """
world = MPI.COMM_WORLD
everyone = world.gather((world.rank, sys.argv[1:]))
if world.rank == 0:
    import json
    print(json.dumps(everyone), flush=True)
"""
    lines = job(source, "a", "two words", ranks=3)
    assert json.loads(lines[-1]) == [[rank, ["a", "two words"]] for rank in range(3)]


# Ends


@pytest.mark.mpi
@pytest.mark.parametrize(
    "death", ["raise ValueError('last words')", "sys.stderr.write('last words\\n'); os.kill(os.getpid(), 9)"]
)
def test_a_failed_job_says_its_last_words(job: Job, death: str, tmp_path: Path) -> None:
    """If one rank fails or is killed, the others end too, and the error has the end of what the job said."""
    source = f"""
if MPI.COMM_WORLD.rank == 1:
    {death}
MPI.COMM_WORLD.Barrier()
"""
    with pytest.raises(JobFailedError, match="last words") as caught:
        job(source, ranks=3)
    assert mark_of(tmp_path) in str(caught.value)
    wait_for(lambda: not processes(mark_of(tmp_path)), "the end of all ranks")


@pytest.mark.mpi
def test_only_the_end_of_long_complaints_is_kept(job: Job) -> None:
    """A job that says very much on both streams is read to the end, and a readable part is quoted."""
    source = """
for number in range(20000):
    print("x" * 60)
    sys.stderr.write(f"complaint {number}\\n")
sys.stderr.flush()
sys.exit(3)
"""
    with pytest.raises(JobFailedError, match="complaint 19999") as caught:
        job(source, ranks=1)
    assert str(caught.value).count("\n") < 100


@pytest.mark.mpi
def test_error_output_is_handed_on_as_it_comes(job: Job) -> None:
    """Each line of every rank's standard error reaches the caller while the job runs, apart from what it prints."""
    heard: list[str] = []
    source = """
os.write(2, f"rank {MPI.COMM_WORLD.rank} is worried\\n".encode())
time.sleep(600)
"""
    with pytest.raises(JobStoppedError):
        job(source, ranks=2, on_error_line=heard.append, should_stop=lambda: len(heard) >= 2)
    assert {"rank 0 is worried", "rank 1 is worried"} <= set(heard)


@pytest.mark.mpi
@pytest.mark.parametrize("deaf", [False, True])
def test_a_job_is_ended_when_its_caller_asks(
    job: Job, tmp_path: Path, deaf: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the caller asks for it, all ranks end within seconds, those that ignore a polite request too."""
    monkeypatch.setattr(launchers, "_GRACE", 1.0)
    source = "import signal\n" + ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else "")
    source += 'os.write(1, b"up\\n")\ntime.sleep(600)\n'
    up: list[str] = []
    start = time.monotonic()
    with pytest.raises(JobStoppedError):
        job(source, ranks=2, on_line=up.append, should_stop=lambda: len(up) == 2)
    assert time.monotonic() - start < 20
    wait_for(lambda: not processes(mark_of(tmp_path)), "the end of all ranks")


@pytest.mark.mpi
def test_a_caller_that_cannot_take_a_line_ends_the_job(job: Job, tmp_path: Path) -> None:
    """What the reader of the job's lines raises ends the job and is raised; nobody waits for a full pipe."""

    def full(line: str) -> None:
        raise OSError(28, "No space left on device")

    source = """
while True:
    print("x" * 1000, flush=True)
"""
    with pytest.raises(OSError, match="No space left"):
        job(source, on_line=full)
    wait_for(lambda: not processes(mark_of(tmp_path)), "the end of all ranks")


@pytest.mark.mpi
def test_a_question_that_fails_ends_the_job(job: Job, tmp_path: Path) -> None:
    """If asking whether to stop fails, the job does not go on unattended."""

    def fail() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job("time.sleep(600)\n", should_stop=fail)
    wait_for(lambda: not processes(mark_of(tmp_path)), "the end of all ranks")


@pytest.mark.mpi
def test_a_killed_mpiexec_ends_its_ranks_and_the_wait(job: Job, tmp_path: Path) -> None:
    """If mpiexec itself is killed, no rank stays behind and the caller is told."""
    up: list[str] = []

    def kill_it() -> None:
        wait_for(lambda: len(up) == 2, "both ranks")
        for pid in processes(mark_of(tmp_path)):
            if b"mpiexec" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_it)
    killer.start()
    with pytest.raises(JobFailedError, match="-9"):
        job('os.write(1, b"up\\n")\ntime.sleep(600)\n', on_line=up.append)
    killer.join()
    wait_for(lambda: not processes(mark_of(tmp_path)), "the end of all ranks")


@pytest.mark.mpi
def test_ranks_notice_the_end_of_whoever_started_them(tmp_path: Path) -> None:
    """If the process that started a job is killed without a word, a job that watches its input ends."""
    mark = f"watched_{os.getpid()}_{tmp_path.name}"
    (tmp_path / f"{mark}.py").write_text(
        "import os\nfrom mpi4py import MPI\nfrom tasks.projection_job import watch_standard_input\n"
        "if MPI.COMM_WORLD.rank == 0:\n    watch_standard_input()\n"
        "os.write(1, b'up\\n')\nwhile True:\n    MPI.COMM_WORLD.Barrier()\n"
    )
    starter = (
        "import sys\nfrom tasks.launchers import Listener, MpiexecLauncher, MpiJob\n"
        "listener = Listener(lambda line: print(line, flush=True), lambda line: None, lambda: False)\n"
        "MpiexecLauncher().run(MpiJob(sys.argv[1], (), 2), listener)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", starter, mark],
        env=environment(PYTHONPATH=tmp_path),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    try:
        assert [parent.stdout.readline() for _ in range(2)] == ["up\n", "up\n"]
        ranks: Sequence[int] = [pid for pid in processes(mark) if pid != parent.pid]
        assert len(ranks) >= 2
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_for(lambda: not processes(mark), "the end of all ranks")
