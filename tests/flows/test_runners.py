"""Where blocks are worked on: threads, and Dask clusters with real workers, MPI jobs and deaths."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from batch_runs import digests, environment, wait_for
from distributed.scheduler import KilledWorker
from flow_runs import configuration, is_alive, parent_of, ranks_below
from prefect import task
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.testing.utilities import prefect_test_harness

from bind_core.config import DatasetConfig, Stratum
from flows.generate import run_summary
from flows.runners import RunnerError, block_runner, is_done, slurm_script
from storage.mock_suite import MockSuite, write_mock_suite

pytestmark = [pytest.mark.prefect, pytest.mark.mpi]

LONG = Stratum(rotations=40)


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    return write_mock_suite(
        tmp_path_factory.mktemp("suite"), simulations=3, particles_per_side=16, halos_per_simulation=2
    )


@pytest.fixture(scope="module")
def undisturbed(suite: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the digests of all samples, made by threads."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert run_summary(configuration(suite, root, strata=[LONG], ranks=1)).ok
    return digests(root)


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[str]:
    """Start a Dask scheduler with two workers, nannies included, as on a cluster of one's own; return its address."""
    program = str(Path(sys.executable).with_name("dask"))
    file = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file)]
    commands = [
        [program, "scheduler", "--port", "0", "--host", "127.0.0.1", "--dashboard-address", ":0", *where],
        *[[program, "worker", "--nthreads", "1", "--no-dashboard", *where]] * 2,
    ]
    processes = [
        subprocess.Popen(command, env=environment(), cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
        for command in commands
    ]
    try:
        wait_for(file.exists, "the scheduler", 120)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)


class Killer(threading.Thread):
    """Kills the process that started the first MPI job of a data set, once this job is making maps."""

    def __init__(self, root: Path, with_parent: bool = False) -> None:
        super().__init__()
        self.root, self.with_parent = root, with_parent
        self.job: dict[int, str] = {}
        self.killed: list[int] = []

    def run(self) -> None:
        wait_for(lambda: any(file.stat().st_size for file in self.root.rglob("progress.jsonl")), "progress")
        launchers = [pid for pid, command in ranks_below(self.root).items() if "mpiexec" in command.split()[0]]
        worker = parent_of(launchers[0])
        self.job = {pid: command for pid, command in ranks_below(self.root).items() if _descends(pid, worker)}
        self.killed = [parent_of(worker), worker] if self.with_parent else [worker]
        for pid in self.killed:
            os.kill(pid, signal.SIGKILL)


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        pid = parent_of(pid)
        if pid == ancestor:
            return True
    return False


def check_survives(config: DatasetConfig, killer: Killer, undisturbed: dict[str, str]) -> None:
    """Run the flow while a worker is killed; nobody may notice it by the result, and none of its ranks may live on."""
    killer.start()
    summary = run_summary(config)
    killer.join()
    assert killer.killed, "no worker was there to be killed"
    assert len(killer.job) >= 2, "the worker had no MPI job"
    assert summary.ok
    assert digests(config.output_root) == undisturbed
    assert not [pid for pid in killer.job if is_alive(pid)]
    assert not ranks_below(config.output_root)


def test_a_worker_killed_mid_block_changes_nothing(
    suite: MockSuite, tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster of this machine, with two workers, the block of a killed one is done by another, to the byte."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = configuration(suite, tmp_path, strata=[LONG], ranks=1, runner="dask", dask={"workers": 2})
    check_survives(config, Killer(tmp_path), undisturbed)
    assert "OMP_NUM_THREADS" not in os.environ, "what a nanny sets for its worker has stayed in this process"


def test_a_worker_killed_with_its_nanny_changes_nothing(
    suite: MockSuite, tmp_path: Path, undisturbed: dict[str, str], scheduler: str
) -> None:
    """On a cluster that runs already, the block of a worker that is lost for good is done by the one that is left."""
    config = configuration(suite, tmp_path / "out", strata=[LONG], ranks=1, runner="dask", dask={"address": scheduler})
    check_survives(config, Killer(tmp_path / "out", with_parent=True), undisturbed)


@task
def end_the_worker() -> None:
    """Stand for a block that kills whoever works on it."""
    os._exit(1)


def test_a_block_that_kills_its_workers_is_given_up(suite: MockSuite, tmp_path: Path) -> None:
    """Where workers die of a block again and again, its task comes to an end, though it reports none, and says why."""
    config = configuration(suite, tmp_path, runner="dask", dask={"workers": 1})
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        block_runner(config, tmp_path) as runner,
    ):
        future = runner.submit(end_the_worker, {})
        wait_for(lambda: is_done(future), "the end of the task", 120)
        with pytest.raises(KilledWorker, match="end_the_worker"):
            future.result()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"address": "tcp://127.0.0.1:9"}, ("tcp://127.0.0.1:9", "dask scheduler", "dask.address")),
        ({"address": "tcp://192.0.2.7:8786"}, ("other machines", "prefect server start", "PREFECT_API_URL")),
        ({"slurm": True}, ("other machines", "prefect server start", "PREFECT_API_URL")),
    ],
)
def test_a_cluster_that_could_not_work_is_refused(
    suite: MockSuite, tmp_path: Path, settings: dict[str, object], said: tuple[str, ...]
) -> None:
    """A scheduler that is not there, and workers that could not reach the server, are explained with what to do."""
    config = configuration(suite, tmp_path, runner="dask", dask=settings)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(RunnerError) as caught,
        block_runner(config, tmp_path),
    ):
        pass
    assert all(words in str(caught.value) for words in said)


@pytest.mark.parametrize("lacking", ["dask_jobqueue", "sbatch"])
def test_what_slurm_workers_lack_is_said(
    suite: MockSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """Without dask-jobqueue, and where no job can be submitted, the message names what is missing."""
    if lacking == "sbatch":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setitem(sys.modules, lacking, None)
    config = configuration(suite, tmp_path, runner="dask", dask={"slurm": True})
    with (
        temporary_settings({PREFECT_API_URL: "http://login1:4200/api"}),
        pytest.raises(RunnerError, match=lacking.replace("_", "-")),
        block_runner(config, tmp_path),
    ):
        pass


def test_a_slurm_job_asks_for_what_a_block_needs(suite: MockSuite, tmp_path: Path) -> None:
    """The job of a worker has a core per rank and what the settings say, and works on one block at a time."""
    job = {"partition": "long", "account": "p7", "time_limit": "02:00:00", "options": ["--constraint=icelake"]}
    small = configuration(suite, tmp_path, ranks=32, dask={"slurm": True}, slurm_job=job)
    script = slurm_script(small, tmp_path)
    asked = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert asked >= {"-p long", "-A p7", "-t 02:00:00", "--constraint=icelake", "-n 1", "--cpus-per-task=32"}
    assert not any(option.startswith("--mem") for option in asked)
    assert "--nthreads 1 " in script
    large = configuration(
        suite, tmp_path, ranks=32, dask={"slurm": True}, slurm_job={"memory": "64G", "cpus_per_rank": 2}
    )
    assert {"#SBATCH --mem=64G", "#SBATCH --cpus-per-task=64"} <= set(slurm_script(large, tmp_path).splitlines())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "dask-jobqueue has kept Ctrl-C to itself"
