"""Real batch runs and MPI jobs, as the tests of several folders start and kill them."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.mock_suite import MockSuite
from tasks.launchers import mpiexec, without_mpi_variables

REPOSITORY = Path(__file__).parents[1]
PROGRAM = REPOSITORY / "process_simulations.py"
MPIEXEC = mpiexec()
TIMEOUT = 120
"""Seconds after which a job counts as hanging."""
SMALL = ["--resolution", "32", "--num_rotations", "2"]
LONG = ["--resolution", "64", "--num_rotations", "20"]


def bases(suite: MockSuite) -> list[str]:
    """Return the flags that name a suite's folders."""
    return [
        *("--nbody_base", str(suite.dmo_base)),
        *("--hydro_base", str(suite.hydro_base)),
        *("--fof_nbody_base", str(suite.catalogue_base)),
    ]


def command(*arguments: object, ranks: int = 0) -> list[str]:
    """Return the command of a batch run: on a number of ranks, or plain where that is 0."""
    program = [sys.executable, str(PROGRAM), *(str(argument) for argument in arguments)]
    return [str(MPIEXEC), "-n", str(ranks), *program] if ranks else program


def environment(**variables: object) -> dict[str, str]:
    """Return an environment without an MPI job around it and with no folder given but these."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("BIND_")}
    return without_mpi_variables(outer) | {name: str(value) for name, value in variables.items()}


def run(
    *arguments: object, ranks: int = 0, cwd: Path = REPOSITORY, **variables: object
) -> subprocess.CompletedProcess[str]:
    """Run the batch program to its end, whatever that is; hanging is an error."""
    return _finished(command(*arguments, ranks=ranks), environment(**variables), cwd)


def start(*arguments: str | Path, ranks: int = 0) -> subprocess.Popen[str]:
    """Start a run that is to be disturbed."""
    return subprocess.Popen(
        command(*arguments, ranks=ranks),
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_mpi(source: str, ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python source as MPI program, as the launchers would."""
    program = [sys.executable, "-m", "mpi4py", "-c", source, *(str(argument) for argument in arguments)]
    return _finished([str(MPIEXEC), "-n", str(ranks), *program], environment(), REPOSITORY)


def run_job(plan: Path, ranks: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the MPI program of a block as the launchers would."""
    program = [sys.executable, "-m", "mpi4py", "-m", "tasks.projection_job", str(plan), "--ranks", str(ranks)]
    line = [str(MPIEXEC), "-n", str(ranks), *program, *(str(argument) for argument in arguments)]
    return _finished(line, environment(), REPOSITORY)


def _finished(line: list[str], variables: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        line,
        env=variables,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def output(finished: subprocess.CompletedProcess[str]) -> str:
    """Return what a program printed that must have succeeded."""
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def last_line(finished: subprocess.CompletedProcess[str]) -> Any:
    """Return the last line, JSON, of a program that must have succeeded."""
    return json.loads(output(finished).strip().splitlines()[-1])


def message_of(finished: subprocess.CompletedProcess[str], *expected: str) -> str:
    """Return what a program said that must have failed, with these words in it and no traceback."""
    said = finished.stdout + finished.stderr
    assert finished.returncode != 0, said
    assert "Traceback" not in said
    for words in expected:
        assert words in said
    return said


def digests(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under `root` that a reader takes for a sample, by its relative path."""
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.npz")}


def file_times(root: Path) -> dict[Path, int]:
    """Return when each sample under `root` was last modified, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.npz")}


def temporaries(root: Path) -> list[Path]:
    """Return what was left half written under `root`."""
    return list(root.rglob("*.bind-tmp"))


def sample_rows(root: Path) -> pl.DataFrame:
    """Return what the manifest says of samples, but for which run said it and when."""
    return _manifest(root).samples().drop("run_id", "created_at")


def simulation_rows(root: Path) -> pl.DataFrame:
    """Return what the manifest says of simulations at last, but for which run said it and when."""
    return _manifest(root).latest_simulations().drop("run_id", "recorded_at")


def statuses(root: Path) -> dict[str, str]:
    """Return the recorded status of each simulation."""
    rows = simulation_rows(root)
    return dict(zip(rows["simulation"].to_list(), rows["status"].to_list(), strict=True))


def is_whole(root: Path) -> bool:
    """Whether the samples on disk are those of the manifest, to the byte, and nothing is half written."""
    rows = sample_rows(root)
    recorded = dict(zip(rows["path"].to_list(), rows["sha256"].to_list(), strict=True))
    return recorded == digests(root) and len(recorded) > 0 and not temporaries(root)


def assert_same(root: Path, other: Path) -> None:
    """Assert that two data sets are equal, but for which run made them and when, and hold nothing half made."""
    assert sample_rows(root).equals(sample_rows(other))
    of_the_attempt = ("inputs", "n_planned")
    assert simulation_rows(root).drop(of_the_attempt).equals(simulation_rows(other).drop(of_the_attempt))
    assert digests(root) == digests(other)
    assert is_whole(root)


def _manifest(root: Path) -> Manifest:
    return Manifest(DatasetLayout(root, "SB35"))


def processes(mark: str) -> list[int]:
    """Return the processes that have a text in their command line, but for this one."""
    return [pid for pid, line in _command_lines().items() if os.fsencode(mark) in line and pid != os.getpid()]


def ranks_of(mark: str) -> list[int]:
    """Return those of the processes that are ranks, and not their launcher."""
    lines = _command_lines()
    return [pid for pid in processes(mark) if pid in lines and b"mpiexec" not in lines[pid]]


def _command_lines() -> dict[int, bytes]:
    """Return the command line of each process; none is left of one that has ended and waits for its parent."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found[int(process.name)] = (process / "cmdline").read_bytes()
        except OSError:
            continue
    return found


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)
