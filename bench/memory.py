"""Memory of a running program with all its processes, as the system counts it."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 0.25
_KB = 1024


@dataclass(frozen=True)
class Measured:
    """What a program took."""

    seconds: float
    peak_bytes: int
    """Largest sum over its processes; pages that processes share are counted once. 0 if it was not measured."""


def run_measured(
    command: Sequence[str], environment: Mapping[str, str], cores: Sequence[int], *, memory: bool
) -> Measured:
    """Run a program to its end, on some of the cores, and measure it.

    Parameters
    ----------
    command : sequence of str
        The program.
    environment : mapping
        Its environment.
    cores : sequence of int
        The cores that it may use.
    memory : bool
        Whether to measure its memory. Adding up pages stops the program for moments: leave it out to take its time.

    Raises
    ------
    subprocess.CalledProcessError
        If it ends with another status than 0.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        ["taskset", "--cpu-list", ",".join(map(str, cores)), *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak), daemon=True)
    if memory:
        watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - start
    if memory:
        watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return Measured(seconds, peak[0])


def _watch(process: "subprocess.Popen[str]", peak: list[int]) -> None:
    session = process.pid
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_proportional_bytes(pid) for pid in _members(session)))
        time.sleep(_INTERVAL)


def _members(session: int) -> list[int]:
    """Return the processes whose parents lead to the program."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError, IndexError, ValueError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found, added = {session}, True
    while added:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        added = bool(more)
        found |= more
    return list(found)


def _proportional_bytes(pid: int) -> int:
    with suppress(OSError, ValueError):
        for line in (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * _KB
    return 0


@contextmanager
def on_one_core() -> Iterator[None]:
    """Hold this process to one core for a while."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def one_core(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which numerical libraries use one thread."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    return dict(os.environ if environment is None else environment) | limits | {"POLARS_MAX_THREADS": "1"}
