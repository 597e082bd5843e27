"""Dask workers as SLURM jobs, on a real SLURM."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from batch_runs import digests, environment
from flow_runs import configuration, ranks_below
from prefect.settings import PREFECT_API_URL, temporary_settings
from served_platform import free_port
from slurm_cluster import Cluster, wait_until

from bind_core.config import DatasetConfig, Stratum
from flows.runners import RunnerError, block_runner
from storage.mock_suite import MockSuite

pytestmark = [pytest.mark.slurm, pytest.mark.mpi, pytest.mark.prefect]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a Prefect server that other machines can reach; return the environment of its clients."""
    port = free_port()
    clients = environment(
        PREFECT_HOME=tmp_path_factory.mktemp("prefect"),
        PREFECT_API_URL=f"http://{socket.gethostname()}:{port}/api",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        DO_NOT_TRACK="1",
    )
    program = str(Path(sys.executable).with_name("prefect"))
    process = subprocess.Popen(
        [program, "server", "start", "--host", "0.0.0.0", "--port", str(port), "--no-ui"],  # noqa: S104
        env=clients,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: answers(clients["PREFECT_API_URL"]), "the server")
        yield clients
    finally:
        process.terminate()
        process.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=30).is_success
    except httpx.HTTPError:
        return False


def generate(config: DatasetConfig, file: Path, variables: dict[str, str]) -> None:
    file.write_text(config.to_yaml())
    command = [str(Path(sys.executable).with_name("bind-data")), "generate", "--config", str(file)]
    subprocess.run(command, env=variables, check=True, timeout=300)


def test_a_lost_job_is_submitted_anew_and_loses_nothing(
    suite: MockSuite, tmp_path: Path, cluster: Cluster, server: dict[str, str]
) -> None:
    """The only worker's job is cancelled mid-block; another one takes its place, and the data set does not show it."""
    before = set(cluster.all_jobs())
    settings = {"strata": [Stratum(rotations=40)], "ranks": 1}
    config = configuration(
        suite,
        tmp_path / "dataset",
        runner="dask",
        dask={"workers": 1, "slurm": True, "interface": "lo"},
        slurm_job={"memory": "2000", "time_limit": "00:10:00"},
        **settings,
    )
    cancelled: list[str] = []

    def cancel_one() -> None:
        wait_until(lambda: any(file.stat().st_size for file in config.output_root.rglob("progress.jsonl")), "progress")
        cancelled.extend(set(cluster.running()) - before)
        cluster.said("scancel", *cancelled)

    canceller = threading.Thread(target=cancel_one)
    canceller.start()
    generate(config, tmp_path / "config.yaml", server | {"SLURM_CONF": str(cluster.configuration)})
    canceller.join()
    jobs = set(cluster.all_jobs()) - before
    assert [cluster.fact(job, "JobState") for job in cancelled] == ["CANCELLED"]
    assert len(jobs) >= 2
    wait_until(lambda: not set(cluster.running()) & jobs, "the end of all jobs")
    assert not ranks_below(config.output_root)
    generate(configuration(suite, tmp_path / "threads", **settings), tmp_path / "config.yaml", server)
    assert digests(config.output_root) == digests(tmp_path / "threads")


@pytest.mark.parametrize(
    ("dask", "job", "said"),
    [
        ({"interface": "lo"}, {"partition": "nowhere"}, "invalid partition"),
        ({"interface": "ib7"}, {}, "'ib7' is not a valid network interface"),
    ],
)
def test_workers_that_slurm_refuses_are_said(
    suite: MockSuite,
    tmp_path: Path,
    cluster: Cluster,
    server: dict[str, str],
    dask: dict[str, object],
    job: dict[str, object],
    said: str,
) -> None:
    """What sbatch says of a partition, and Dask of a network, that is not there ends a run before it waits for it."""
    settings = {"runner": "dask", "dask": {"slurm": True, **dask}, "slurm_job": job}
    config = configuration(suite, tmp_path / "dataset", **settings)
    with (
        temporary_settings({PREFECT_API_URL: server["PREFECT_API_URL"]}),
        pytest.raises(RunnerError, match=said),
        block_runner(config, tmp_path),
    ):
        pass
    assert not cluster.running()
