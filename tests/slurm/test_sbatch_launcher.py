"""MPI programs as SLURM jobs and steps, and what their ends mean, on a real SLURM."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_runs import processes
from slurm_cluster import CPUS, Cluster, wait_until

from bind_core.slurm_jobs import SlurmJobSettings
from tasks.launchers import (
    JobFailedError,
    JobMemoryError,
    JobRefusedError,
    JobStoppedError,
    JobTimedOutError,
    Listener,
    MpiJob,
)
from tasks.sbatch import SbatchLauncher
from tasks.slurm import SrunLauncher

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]

FOR_EVER = 'os.write(1, b"up\\n")\ntime.sleep(600)\n'


class Program:
    """A Python module that is run as MPI job on the cluster."""

    def __init__(self, folder: Path, cluster: Cluster, name: str) -> None:
        self.folder = folder
        self.cluster = cluster
        self.name = name
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.number = ""

    def submit(
        self,
        source: str,
        *arguments: str,
        ranks: int = 2,
        on_up: Callable[[], object] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
        **settings: object,
    ) -> None:
        """Run source as SLURM job to its end; when all ranks have said a line, something is done to it."""
        self._write(source)
        chosen = SlurmJobSettings(**{"memory": "1000", "poll_interval": 0.5, **settings})
        launcher = SbatchLauncher(chosen, self.folder, self.name, "a test's 'own' job", self._take_number)
        over = threading.Event()
        watcher = threading.Thread(target=self._when_up, args=(ranks, on_up, over))
        watcher.start()
        try:
            launcher.run(MpiJob(self.name, arguments, ranks), self._listener(should_stop))
        finally:
            over.set()
            watcher.join()

    def step(self, source: str, ranks: int) -> None:
        """Run source as a step of the allocation at hand."""
        self._write(source)
        SrunLauncher().run(MpiJob(self.name, (), ranks), self._listener(lambda: False))

    def left(self) -> list[int]:
        return processes(self.name)

    def _write(self, source: str) -> None:
        (self.folder / f"{self.name}.py").write_text("import os, sys, time\nfrom mpi4py import MPI\n" + source)

    def _listener(self, should_stop: Callable[[], bool]) -> Listener:
        return Listener(self.lines.append, self.errors.append, should_stop)

    def _take_number(self, number: str) -> None:
        self.number = number

    def _when_up(self, ranks: int, act: Callable[[], object], over: threading.Event) -> None:
        while not over.wait(0.1):
            if len(self.lines) >= ranks:
                act()
                return


@pytest.fixture
def program(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Program:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return Program(folder, cluster, f"slurm_job_{os.getpid()}_{tmp_path.name}")


def test_a_job_is_one_world_and_is_heard_as_it_runs(program: Program) -> None:
    """The ranks of a job form one world; what they print and complain of arrives line by line, each apart."""
    program.submit(
        "world = MPI.COMM_WORLD\n"
        'os.write(1, f"{world.rank} of {world.size} {sys.argv[1]}\\n".encode())\n'
        'os.write(2, f"{world.rank} is worried\\n".encode())\n',
        "two words",
        ranks=3,
    )
    assert sorted(program.lines) == [f"{rank} of 3 two words" for rank in range(3)]
    assert sorted(program.errors) == [f"{rank} is worried" for rank in range(3)]
    assert program.cluster.fact(program.number, "JobName") == program.name


def test_a_job_that_fails_may_be_repeated_and_says_its_last_words(program: Program) -> None:
    """If a rank fails, the others end too, and the error has the end of what the job said."""
    with pytest.raises(JobFailedError, match=r"FAILED.*\n.*last words"):
        program.submit("if MPI.COMM_WORLD.rank == 1:\n    sys.exit('last words')\nMPI.COMM_WORLD.Barrier()\n", ranks=2)
    assert not program.left()


def test_a_job_that_needs_more_memory_is_not_repeated(program: Program) -> None:
    """Running out of memory is an error of its own, which says what to set."""
    with pytest.raises(JobMemoryError, match=r"slurm_job\.memory"):
        program.submit("hoard = b'x' * (400 << 20)\n" + FOR_EVER, ranks=1, memory="150")


def test_what_is_lost_may_be_repeated(program: Program) -> None:
    """A node that fails, and a job that gives way to another one, are reasons to submit it again."""
    cluster, node = program.cluster, program.cluster.host

    def fail() -> None:
        cluster.said("scontrol", "update", f"nodename={node}", "state=down", "reason=a test")
        cluster.said("scontrol", "update", f"nodename={node}", "state=resume")

    with pytest.raises(JobFailedError, match="NODE_FAIL: one of its nodes failed"):
        program.submit(FOR_EVER, on_up=fail)
    program.lines.clear()
    urgent = ["sbatch", "--partition=urgent", f"--ntasks={CPUS}", "--mem=100", "--output=/dev/null", "--wrap=true"]
    with pytest.raises(JobFailedError, match="PREEMPTED: another job took its place"):
        program.submit(FOR_EVER, on_up=lambda: cluster.said(*urgent))
    wait_until(lambda: not program.left(), "the end of all ranks")


def test_a_job_at_its_time_limit_may_be_repeated_and_says_what_to_set(program: Program) -> None:
    """A job that reaches its time limit ends with an error of its own, which names the setting."""

    def shorten() -> None:
        soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 1))
        program.cluster.said("scontrol", "update", f"jobid={program.number}", f"EndTime={soon}")

    with pytest.raises(JobTimedOutError, match=r"slurm_job\.time_limit"):
        program.submit(FOR_EVER, on_up=shorten, time_limit="5")


def test_a_cancelled_job_is_not_submitted_again(program: Program) -> None:
    """What somebody cancels with scancel ends as stopped, and leaves no rank."""
    with pytest.raises(JobStoppedError, match="CANCELLED"):
        program.submit(FOR_EVER, on_up=lambda: program.cluster.said("scancel", program.number))
    wait_until(lambda: not program.left(), "the end of all ranks")


def test_a_job_is_cancelled_when_its_caller_asks(program: Program) -> None:
    """When the caller asks for it, the job has left the queue before the launcher returns."""
    with pytest.raises(JobStoppedError):
        program.submit(FOR_EVER, should_stop=lambda: len(program.lines) == 2)
    assert program.number not in program.cluster.running()
    wait_until(lambda: not program.left(), "the end of all ranks")


def test_a_job_that_slurm_refuses_is_not_repeated(program: Program) -> None:
    """What SLURM will not take is said in its words, with the way to see what was asked."""
    with pytest.raises(JobRefusedError, match=r"(?s)invalid partition.*--print-job-script"):
        program.submit(FOR_EVER, partition="nowhere")


def test_singletons_are_refused(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that do not find each other end at once, and the job is not repeated."""
    monkeypatch.setenv("SLURM_MPI_TYPE", "none")
    source = f"from tasks.projection_job import main\nmain([{str(program.folder / 'plan.json')!r}, '--ranks', '2'])\n"
    with pytest.raises(JobRefusedError, match="job of 2 ranks: this process finds itself in one of 1"):
        program.submit(source)


def test_steps_run_in_the_allocation_at_hand(program: Program) -> None:
    """Inside an allocation, srun starts the ranks there; what it has no room for is refused with the way out."""
    source = (
        "import pytest, sys\n"
        "from pathlib import Path\n"
        "sys.path[:0] = sys.argv[1:3]\n"
        "from test_sbatch_launcher import FOR_EVER, JobMemoryError, JobRefusedError, Program\n"
        "program = Program(Path(sys.argv[3]), None, 'a_step')\n"
        "program.step('os.write(1, str(MPI.COMM_WORLD.size).encode() + bytes([10]))', 2)\n"
        "assert program.lines == ['2', '2'], program.lines\n"
        "with pytest.raises(JobRefusedError, match='cannot run 9 MPI ranks'):\n"
        "    program.step('pass', 9)\n"
        "with pytest.raises(JobMemoryError, match='Ask for more'):\n"
        "    program.step('hoard = bytes(1) * (800 << 20)' + chr(10) + FOR_EVER, 1)\n"
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1]), str(program.folder)]
    line = ["salloc", "--ntasks=2", "--mem=600", sys.executable, "-c", source, *folders]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_steps_need_an_allocation(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside any allocation, the launcher srun says so, and what else there is."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(JobRefusedError, match="launcher: sbatch"):
        program.step("pass", 2)
