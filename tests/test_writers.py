"""Several runs that would write to one data set at once, owners that are stopped or killed, and who is told what."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_runs import (
    LONG,
    PROGRAM,
    REPOSITORY,
    TIMEOUT,
    assert_same,
    bases,
    digests,
    environment,
    output,
    run,
    sample_rows,
    start,
    wait_for,
)
from command_line import PROGRAM as BIND_DATA
from lease_owners import stop

from storage.layout import DatasetLayout
from storage.lease import living_claims
from storage.mock_suite import MockSuite, write_mock_suite

BY_ONE = "simulations_per_block: 1\n"


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    return write_mock_suite(
        tmp_path_factory.mktemp("suite"), simulations=3, particles_per_side=16, halos_per_simulation=2
    )


@pytest.fixture(scope="module")
def alone(suite: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data set of a run that nobody disturbed."""
    root = tmp_path_factory.mktemp("alone")
    output(run(*bases(suite), *LONG, "--output_base_root", root))
    return root


@pytest.fixture
def asked(suite: MockSuite, tmp_path: Path) -> list[str]:
    """Return the flags of a run that commits after each simulation."""
    file = tmp_path / "by_one.yaml"
    file.write_text(BY_ONE)
    return ["--config", str(file), *bases(suite), *LONG, "--output_base_root", str(tmp_path / "set")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


@pytest.mark.parametrize("writers", [2, 4])
def test_of_several_writers_one_writes(asked: list[str], alone: Path, root: Path, writers: int) -> None:
    """Of runs that are started at once, those that do not succeed are told which other one is writing."""
    runs = [start(*asked) for _ in range(writers)]
    said = [process.communicate(timeout=TIMEOUT)[1] for process in runs]
    assert 0 in [process.returncode for process in runs], said
    numbers = {process.pid for process in runs}
    for process, errors in zip(runs, said, strict=True):
        assert "Traceback" not in errors
        if process.returncode:
            assert "DatasetHeldError" in errors
            (owner,) = re.findall(r"process (\d+) of", errors)
            assert int(owner) in numbers - {process.pid}
    assert_same(root, alone)


@pytest.mark.prefect
@pytest.mark.mpi
def test_commands_respect_the_batch_program(asked: list[str], tmp_path: Path, root: Path) -> None:
    """While it is at work, the flow and a repair are refused, and told by whom."""
    batch = start(*asked)
    try:
        wait_for((root / "dataset.yaml").exists, "the first commit", TIMEOUT)
        stop(batch)
        line = [str(BIND_DATA), "status", "--dataset", str(root), "--json"]
        status = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        (writer,) = json.loads(status.stdout)["writers"]
        assert f"process {batch.pid} of" in writer
        assert writer.endswith("(stopped)")
        for line in (["generate", "--config", str(root / "dataset.yaml")], ["repair", "--dataset", str(root)]):
            refused = subprocess.run(
                [str(BIND_DATA), *line],
                env=environment(PREFECT_HOME=tmp_path / "prefect"),
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
            said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", refused.stderr).split())
            assert refused.returncode == 1
            assert f"DatasetHeldError: Another run is writing to {root}: process_simulations.py" in said
            assert f"kill -CONT {batch.pid}" in said
    finally:
        batch.kill()
        batch.communicate()
    assert not living_claims(DatasetLayout(root, "SB35"))


def test_a_stopped_owner_goes_on_and_ends_well(asked: list[str], alone: Path, root: Path) -> None:
    """A second run is refused as long as the first one, which is stopped, may go on; killed, it is taken over from."""
    first = start(*asked)
    try:
        wait_for(lambda: digests(root), "the first sample", TIMEOUT)
        stop(first)
        refused = run(*asked)
        assert refused.returncode == 1
        assert f"process {first.pid} of" in refused.stderr
        assert f"kill -CONT {first.pid}" in refused.stderr
        first.send_signal(signal.SIGCONT)
        _, errors = first.communicate(timeout=TIMEOUT)
        assert first.returncode == 0, errors
    finally:
        first.kill()
        first.communicate()
    assert_same(root, alone)


def test_a_killed_owner_is_taken_over_from(asked: list[str], alone: Path, root: Path) -> None:
    """The run after one that was killed, stopped or not, does not wait."""
    first = start(*asked)
    wait_for(lambda: digests(root), "the first sample", TIMEOUT)
    stop(first)
    first.kill()
    first.communicate()
    output(run(*asked))
    assert_same(root, alone)


MACHINE = """
import errno, fcntl, runpy, sys

def no_locks(*_):
    raise OSError(errno.ENOLCK, "No locks available")

fcntl.flock = no_locks
import storage.lease, storage.process_identity

machine, silence, program, *arguments = sys.argv[1:]
storage.process_identity._boot = lambda: machine
storage.lease.writing.__wrapped__.__kwdefaults__.update(beat_interval=0.2, silence=float(silence))
sys.argv = [program, *arguments]
runpy.run_path(program, run_name="__main__")
"""
"""The batch program on a machine of its own, whose file system knows no locks."""


def on_machine(name: str, silence: float, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MACHINE, name, str(silence), str(PROGRAM), *arguments],
        env=environment(PYTHONPATH=REPOSITORY),
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def first(asked: list[str], root: Path) -> Iterator[subprocess.Popen[str]]:
    """Return a run on one machine that has begun to write."""
    process = on_machine("one", TIMEOUT, *asked)
    wait_for(lambda: digests(root), "the first sample", TIMEOUT)
    yield process
    process.kill()
    process.communicate()


def test_an_owner_that_was_taken_for_dead_records_nothing_more(
    asked: list[str], alone: Path, root: Path, first: subprocess.Popen[str]
) -> None:
    """Cut off for long, on another machine and without locks, it loses its right; going on, it says so and ends."""
    stop(first)
    second = on_machine("two", 4.0, *asked)
    _, errors = second.communicate(timeout=TIMEOUT)
    assert second.returncode == 0, errors
    before = sample_rows(root)
    assert before.equals(sample_rows(alone))
    first.send_signal(signal.SIGCONT)
    _, errors = first.communicate(timeout=TIMEOUT)
    assert first.returncode == 1
    assert "LeaseLostError" in errors
    assert "Traceback" not in errors
    assert sample_rows(root).equals(before)
    assert_same(root, alone)


def test_a_living_owner_on_another_machine_is_respected(
    asked: list[str], alone: Path, root: Path, first: subprocess.Popen[str]
) -> None:
    """Where signs of life alone can tell, one is enough."""
    second = on_machine("two", TIMEOUT, *asked)
    _, errors = second.communicate(timeout=TIMEOUT)
    if second.returncode:  # else the first one had just given its right back
        assert "DatasetHeldError" in errors
        assert f"process {first.pid} of" in errors
        assert f"on {os.uname().nodename}" in errors
    first.communicate(timeout=TIMEOUT)
    assert first.returncode == 0
    assert_same(root, alone)
