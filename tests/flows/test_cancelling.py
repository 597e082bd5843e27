"""Runs that are ended before they are done, in every way that there is: no process may be left of them."""

import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_runs import REPOSITORY, digests, is_whole, wait_for
from command_line import PROGRAM
from flow_runs import Family, configuration, ranks_below
from served_platform import ServedPlatform, serving

from bind_core.config import DatasetConfig, Stratum
from flows.signals import noted_signals
from storage.mock_suite import MockSuite, write_mock_suite

pytestmark = [pytest.mark.prefect, pytest.mark.mpi]

RUNNERS = {
    "threads": {"runner": "threads", "concurrent_blocks": 2},
    "dask": {"runner": "dask", "dask": {"workers": 2}},
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    root = tmp_path_factory.mktemp("suite")
    return write_mock_suite(root, simulations=2, particles_per_side=16, halos_per_simulation=2)


@pytest.fixture
def family() -> Iterator[Family]:
    """Return a family of processes of which nobody lives after the test, whatever its outcome."""
    family = Family()
    yield family
    for pid in family.members():
        os.kill(pid, signal.SIGKILL)


def long_run(suite: MockSuite, root: Path, runner: str) -> DatasetConfig:
    """Return the configuration of a run that would take minutes, on two blocks at once."""
    return configuration(suite, root, strata=[Stratum(rotations=3000)], ranks=1, **RUNNERS[runner])


def jobs_below(root: Path) -> list[int]:
    """Return the MPI ranks that work on a data set, without their launchers."""
    return [pid for pid, command in ranks_below(root).items() if "mpiexec" not in command.split()[0]]


def start(config: DatasetConfig, family: Family, folder: Path) -> subprocess.Popen[str]:
    """Start the command on a configuration, as a shell does: in a process group of its own."""
    file = folder / "config.yaml"
    file.write_text(config.to_yaml())
    return subprocess.Popen(
        [str(PROGRAM), "generate", "--config", str(file)],
        env=family.environment(PREFECT_HOME=folder / "prefect"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("runner", "number"), [("threads", signal.SIGINT), ("threads", signal.SIGTERM), ("dask", signal.SIGINT)]
)
def test_an_ended_command_says_so_and_leaves_nobody(
    suite: MockSuite, tmp_path: Path, family: Family, runner: str, number: signal.Signals
) -> None:
    """Ctrl-C, which the whole terminal gets, and SIGTERM end a run with one message, all its processes and no noise."""
    config = long_run(suite, tmp_path / "dataset", runner)
    process = start(config, family, tmp_path)
    wait_for(lambda: len(jobs_below(config.output_root)) == 2, "ranks of two blocks", 120)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert errors.count("run the same command again to go on") == 1
    assert "Traceback" not in errors
    wait_for(lambda: not family.members(), "the end of all processes")


def test_an_ended_run_can_be_resumed(suite: MockSuite, tmp_path: Path, family: Family) -> None:
    """The same command makes what a run that was ended has left, and both together are an undisturbed run."""
    short = {"strata": [Stratum(rotations=40)], "ranks": 1}
    config = configuration(suite, tmp_path / "dataset", **short)
    process = start(config, family, tmp_path)
    wait_for(lambda: digests(config.output_root), "the first sample", 120)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, errors
    undisturbed = configuration(suite, tmp_path / "undisturbed", **short)
    for each in (config, undisturbed):
        again = start(each, family, tmp_path)
        _, errors = again.communicate(timeout=240)
        assert again.returncode == 0, errors
    assert digests(config.output_root) == digests(undisturbed.output_root)
    assert is_whole(config.output_root)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_gets_lost_ends_the_run_nevertheless() -> None:
    """Where Python ignores the exception of Ctrl-C, in the callback of a weak reference, it is raised later."""

    def interrupt(_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    with noted_signals() as signals:
        signals.raise_lost()
        something = Family()
        reference = weakref.ref(something, interrupt)
        del something
        assert reference() is None
        with pytest.raises(KeyboardInterrupt):
            signals.raise_lost()
        signals.raise_lost()


def test_nobody_outlives_a_command_that_is_killed(suite: MockSuite, tmp_path: Path, family: Family) -> None:
    """If the command is killed, its server, workers and ranks notice and end by themselves."""
    config = long_run(suite, tmp_path / "dataset", "dask")
    process = start(config, family, tmp_path)
    wait_for(lambda: len(jobs_below(config.output_root)) == 2, "ranks of two blocks", 120)
    kinds = " ".join(family.members().values())
    assert all(kind in kinds for kind in ("embedded_server", "multiprocessing.spawn", "mpiexec"))
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not family.members(), "the end of all processes")


@pytest.fixture(scope="module")
def platform(suite: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServedPlatform, Family]]:
    """Start a server, a worker and the deployments, as a family of their own."""
    family = Family()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in family.mark.items():
            patch.setenv(name, value)
        with serving(tmp_path_factory.mktemp("platform") / "served", suite.dmo_base.parent) as served:
            yield served, family


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_cancelled_flow_run_leaves_nobody(
    suite: MockSuite, tmp_path: Path, platform: tuple[ServedPlatform, Family], runner: str
) -> None:
    """`prefect flow-run cancel` ends a deployment's run on a work pool: it is Cancelled, and all its processes end."""
    served, family = platform
    before = set(family.members())
    config = long_run(suite, tmp_path / "dataset", runner).model_dump(mode="json")
    run = served.start("generate", config=config)
    wait_for(lambda: len(jobs_below(tmp_path / "dataset")) == 2, "ranks of two blocks", 120)
    program = str(Path(sys.executable).with_name("prefect"))
    subprocess.run(
        [program, "--no-prompt", "flow-run", "cancel", run],
        env=served.environment,
        stdout=subprocess.DEVNULL,
        timeout=120,
        check=True,
    )
    assert served.finished(run)["state_type"] == "CANCELLED"
    wait_for(lambda: set(family.members()) <= before, "the end of all processes of the run")
