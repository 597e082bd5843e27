"""The main flow with a SLURM job per block: killed and restarted, cancelled, and what its ranks say."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from batch_runs import REPOSITORY, digests, environment, is_whole, processes, statuses
from block_runs import make
from command_line import PROGRAM
from prefect.settings import PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from slurm_cluster import Cluster, wait_until

from bind_core.config import DatasetConfig, LauncherName, Stratum
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.plan import BlockPlan
from storage.blocks import plan_block, screen_block
from storage.layout import DatasetLayout
from storage.manifest import open_dataset
from storage.mock_suite import Defect, MockSuite, write_mock_suite
from storage.workload import plan_workload
from tasks.block_files import block_folder
from tasks.block_job import BlockJob
from tasks.launchers import Listener

pytestmark = [pytest.mark.slurm, pytest.mark.mpi]

# One interpreter has several names.
_ANY_PYTHON = re.compile(r"python[\d.]*(?= )")

DEAF = Listener(lambda line: None, lambda line: None, lambda: False)


@pytest.fixture(scope="module")
def doubtful_suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Return two simulations, of which the second gives a warning when its particles are read."""
    return write_mock_suite(
        tmp_path_factory.mktemp("doubtful"),
        simulations=2,
        particles_per_side=16,
        halos_per_simulation=2,
        defects={"SB35_1": [Defect.WRONG_PARTICLE_MASS]},
    )


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Return the address of a Prefect server."""
    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


def configuration(suite: MockSuite, root: Path, **settings: object) -> DatasetConfig:
    values: dict[str, object] = {
        **{name: getattr(suite, name) for name in ("dmo_base", "hydro_base", "catalogue_base", "parameter_file")},
        "output_root": root,
        "resolution": 32,
        "strata": [Stratum(rotations=20)],
        "launcher": "sbatch",
        "slurm_job": {"memory": "1500", "poll_interval": 0.5},
        "retry_delay": 0.1,
    }
    return DatasetConfig.from_values(values | settings)


class Run:
    """`bind-data generate` as a process, with its log in a file."""

    def __init__(self, config: DatasetConfig, folder: Path, server: str) -> None:
        self.log = folder / f"{len(list(folder.glob('*.log')))}.log"
        file = folder / "config.yaml"
        file.write_text(config.to_yaml())
        variables = environment(PREFECT_API_URL=server, COLUMNS="300")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(PROGRAM), "generate", "--config", str(file), "--verbose"],
                cwd=REPOSITORY,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def said(self, words: str) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return words in self.log.read_text()


def running_jobs(config: DatasetConfig, count: int) -> list[str]:
    """Return the numbers of the jobs that make a data set, once the ranks of so many are at work."""

    def at_work() -> list[Path]:
        return [file for file in config.output_root.rglob("job-*.out") if file.stat().st_size]

    wait_until(lambda: len(at_work()) == count, "the first reports of progress")
    return [file.stem.removeprefix("job-") for file in at_work()]


@pytest.mark.prefect
def test_a_restarted_flow_finds_its_job_again(
    cluster: Cluster, doubtful_suite: MockSuite, tmp_path: Path, server: str
) -> None:
    """A flow that is killed leaves its job running; the next flow waits for that one, and hears what it says."""
    before = set(cluster.all_jobs())
    config = configuration(doubtful_suite, tmp_path / "dataset")
    first = Run(config, tmp_path, server)
    (job,) = running_jobs(config, 1)
    cluster.said("scontrol", "suspend", job)  # or it would have ended when the next flow is there
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    second = Run(config, tmp_path, server)
    wait_until(lambda: second.said(f"Found SLURM job {job} of an earlier run"), "the second flow")
    cluster.said("scontrol", "resume", job)
    assert second.process.wait(120) == 0, second.log.read_text()
    assert set(cluster.all_jobs()) - before == {job}
    assert is_whole(config.output_root)
    make(config.model_copy(update={"output_root": tmp_path / "undisturbed"}))
    assert digests(config.output_root) == digests(tmp_path / "undisturbed")
    log = second.log.read_text()
    (line,) = [line for line in log.splitlines() if "rank 0, SB35_1" in line]
    assert "WARNING" in line.split("|")[1]
    assert "mass budget" in line
    assert '"phase"' not in log


@pytest.mark.prefect
def test_a_cancelled_flow_cancels_its_jobs(cluster: Cluster, suite: MockSuite, tmp_path: Path, server: str) -> None:
    """When the flow is interrupted, its jobs are cancelled and no rank is left; the same command makes the rest."""
    blocks = {"simulations_per_block": 2, "concurrent_blocks": 2}
    config = configuration(suite, tmp_path / "dataset", strata=[Stratum(rotations=300)], **blocks)
    run = Run(config, tmp_path, server)
    jobs = running_jobs(config, 2)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(120) != 0
    assert [cluster.states(job) for job in jobs] == [{"CANCELLED"}] * 2
    wait_until(lambda: not processes(str(config.output_root)), "the end of all ranks")
    fewer = config.model_copy(update={"strata": (Stratum(rotations=1),)})
    again = Run(fewer, tmp_path, server)
    assert again.process.wait(120) == 0, again.log.read_text()
    assert set(statuses(config.output_root).values()) == {"complete"}


def plan_of(config: DatasetConfig, run_id: str) -> BlockPlan:
    """Return the block of everything outstanding."""
    manifest = open_dataset(DatasetLayout(config.output_root, config.set_name), config)
    work = plan_workload(config, manifest).outstanding
    plan = plan_block(screen_block(work, config, read_parameter_table(find_parameter_file(config))), config, run_id, 0)
    assert plan is not None
    return plan


def folder_of(config: DatasetConfig, run_id: str) -> Path:
    folder = block_folder(DatasetLayout(config.output_root, config.set_name).work_folder / run_id, 0)
    folder.mkdir(parents=True)
    return folder


_RUN_AND_DIE = """
import os, sys
from pathlib import Path
from bind_core.plan import BlockPlan
from tasks.block_job import BlockJob
from tasks.launchers import Listener
plan = BlockPlan.from_json(Path(sys.argv[1]).read_text())
die = lambda message: os._exit(9) if message.startswith("Submitted") else None
BlockJob(plan, Path(sys.argv[2]), die).run(Listener(print, print, lambda: False))
"""


def test_results_of_a_job_that_ended_meanwhile_are_taken(cluster: Cluster, suite: MockSuite, tmp_path: Path) -> None:
    """What a dead process's job has made is not made again, though the blocks are divided otherwise by then."""
    config = configuration(suite, tmp_path / "dataset", strata=[Stratum(rotations=1)])
    plan, before = plan_of(config, "dead"), set(cluster.all_jobs())
    three = replace(plan, simulations=plan.simulations[:3])
    file = tmp_path / "plan.json"
    file.write_text(three.to_json())
    line = [sys.executable, "-c", _RUN_AND_DIE, str(file), str(folder_of(config, "dead"))]
    assert subprocess.run(line, cwd=REPOSITORY, timeout=120, check=False).returncode == 9
    wait_until(lambda: not cluster.running(), "the end of the job")
    (job,) = set(cluster.all_jobs()) - before
    later = replace(plan, run_id="later", simulations=plan.simulations[1:])
    heard: list[str] = []
    results = BlockJob(later, folder_of(config, "later"), heard.append).run(DEAF)
    assert list(results) == [simulation.simulation for simulation in later.simulations]
    assert f"SLURM job {job} has made 2 of the 2 simulations expected of it" in heard
    assert any("2 MPI ranks for 1 simulations" in message for message in heard)
    assert len(set(cluster.all_jobs()) - before) == 2


def test_the_script_shown_is_the_one_submitted(cluster: Cluster, suite: MockSuite, tmp_path: Path) -> None:
    """--print-job-script prints what a run then submits, but for the run's own folder, and does nothing."""
    config = configuration(suite, tmp_path / "dataset", strata=[Stratum(rotations=1)])
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    line = [str(PROGRAM), "generate", "--config", str(file), "--print-job-script"]
    shown = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=120, check=True).stdout
    assert not config.output_root.exists()
    folder = folder_of(config, "run")
    BlockJob(plan_of(config, "run"), folder).run(DEAF)
    run_id = Path(shown.split("--output=")[1].split("\n")[0]).parents[1].name
    submitted = (folder / "job.sh").read_text()
    assert _ANY_PYTHON.sub("python", shown.replace(run_id, "run")) == _ANY_PYTHON.sub("python", submitted)
    assert f"--job-name={cluster.fact(max(cluster.all_jobs(), key=int), 'JobName')}" in shown


def test_only_sbatch_has_a_script_to_show(suite: MockSuite, tmp_path: Path) -> None:
    """With another launcher, there is no job script, and the refusal says how to get one."""
    file = tmp_path / "config.yaml"
    file.write_text(configuration(suite, tmp_path / "dataset", launcher=LauncherName.MPIEXEC).to_yaml())
    line = [str(PROGRAM), "generate", "--config", str(file), "--print-job-script"]
    done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "--option launcher=sbatch" in done.stderr
