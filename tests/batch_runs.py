"""Real batch runs and MPI jobs, as the tests of several folders start and kill them."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.mock_suite import MockSuite
from tasks.launchers import mpiexec, without_mpi_variables

REPOSITORY = Path(__file__).parents[1]
PROGRAM = REPOSITORY / "process_simulations.py"
TIMEOUT = 120
"""Seconds after which a job counts as hanging."""

_BASES = ("BIND_NBODY_BASE", "BIND_HYDRO_BASE", "BIND_FOF_NBODY_BASE", "BIND_PARAM_FILE", "BIND_DATASET")


def bases(suite: MockSuite) -> list[str]:
    """Return the flags that name a suite's folders."""
    return [
        *("--nbody_base", str(suite.dmo_base)),
        *("--hydro_base", str(suite.hydro_base)),
        *("--fof_nbody_base", str(suite.catalogue_base)),
    ]


def command(*arguments: str | Path, ranks: int | None = None) -> list[str]:
    """Return the command of a batch run, under mpiexec if ranks are given."""
    program = [sys.executable, str(PROGRAM), *(str(argument) for argument in arguments)]
    return program if ranks is None else [str(mpiexec()), "-n", str(ranks), *program]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment without an MPI job around it and without folders given."""
    kept = {name: value for name, value in without_mpi_variables(os.environ).items() if name not in _BASES}
    return kept | dict(extra or {})


def batch(
    *arguments: str | Path,
    ranks: int | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: Path = REPOSITORY,
) -> subprocess.CompletedProcess[str]:
    """Run the batch program to its end, whatever that is; hanging is an error."""
    return _finished(command(*arguments, ranks=ranks), clean_environment(environment), cwd)


def mpi_script(source: str, ranks: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python source as MPI program, as the launchers would."""
    program = [sys.executable, "-m", "mpi4py", "-c", source, *(str(argument) for argument in arguments)]
    return _finished([str(mpiexec()), "-n", str(ranks), *program], clean_environment(), REPOSITORY)


def _finished(call: list[str], environment: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        call,
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def digests(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under `root` that a reader takes for a sample, by its relative path."""
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*.npz")}


def times(root: Path) -> dict[Path, int]:
    """Return when each sample under `root` was last modified, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*.npz")}


def manifest(root: Path) -> Manifest:
    return Manifest(DatasetLayout(root, "SB35"))


def recorded(root: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return what the manifest says of samples and simulations, but for which run said it and when."""
    record = manifest(root)
    samples = record.samples().drop("run_id", "created_at").sort("sample_id")
    return samples, record.latest_simulations().drop("run_id", "recorded_at").sort("simulation")


def statuses(root: Path) -> dict[str, str]:
    rows = manifest(root).latest_simulations()
    return dict(zip(rows["simulation"].to_list(), rows["status"].to_list(), strict=True))


def assert_whole(root: Path) -> None:
    """Assert that every committed sample is there as recorded."""
    found = digests(root)
    for row in manifest(root).samples().iter_rows(named=True):
        assert found[row["path"]] == row["sha256"]


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob("*.bind-tmp"))


def processes(mark: str | Path) -> list[int]:
    """Return the processes that have a text in their command line, but for this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(str(mark)) in line and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def ranks_of(mark: str | Path) -> list[int]:
    """Return those of the processes that are ranks, and not their launcher."""
    return [pid for pid in processes(mark) if b"mpiexec" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def kill_all(mark: str | Path) -> int:
    """Kill every process that has a text in its command line; return how many there were."""
    killed = 0
    for pid in processes(mark):
        try:
            os.kill(pid, signal.SIGKILL)
            killed += 1
        except ProcessLookupError:
            continue
    return killed


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def last_line_as_json(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
