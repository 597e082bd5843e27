"""How much memory this node has for a job: of the machine, of its control groups, of SLURM, and shared.

Knows no Prefect. Everything is asked of the system's files, so that a job that does not fit is refused with numbers,
and not killed in the middle of its work.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bind_core.errors import BindDataError
from bind_core.memory_need import MemoryNeed, shown_bytes

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (nothing is written there)
"""Where MPI libraries put what ranks share. Its pages are taken when they are touched: a full one is a SIGBUS."""

_MIB = 1 << 20
_KIB = 1 << 10
_SLURM_NODE, _SLURM_CPU, _SLURM_CPUS = "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"
"""Variables with what a SLURM job has on each node, in MiB; not every cluster holds it to that by a control group."""


class InsufficientMemoryError(BindDataError):
    """A simulation that does not fit into the memory of the node; making it again there does not help."""


@dataclass(frozen=True)
class Limit:
    """A number of bytes, and who says so."""

    bytes: int
    source: str
    """As part of a sentence."""


@dataclass(frozen=True)
class NodeMemory:
    """What a node has for a job that is about to start."""

    free: Limit
    shared: Limit | None
    """Room for what ranks share, which is part of `free`; None where that cannot be told."""

    def require(self, need: MemoryNeed) -> None:
        """Make sure that what a simulation is certain to take is there.

        Raises
        ------
        InsufficientMemoryError
            If it is not; the message has all numbers.
        """
        if need.certain > self.free.bytes:
            raise InsufficientMemoryError(
                f"Making the samples of {need.simulation} takes at least {shown_bytes(need.certain)} of memory on one "
                f"node ({need}); {shown_bytes(self.free.bytes)} are there ({self.free.source}). Nothing of it was "
                f"read. Give the job a node, or a limit, with {shown_bytes(need.expected)} or more, or start fewer "
                "jobs on a node at once (concurrent_blocks, dask.workers)."
            )
        if self.shared is not None and need.shared_bytes > self.shared.bytes:
            raise InsufficientMemoryError(
                f"The ranks that make {need.simulation} share {shown_bytes(need.shared_bytes)} of memory ({need}); "
                f"{shown_bytes(self.shared.bytes)} are free in {self.shared.source}. Nothing of it was read. Make "
                "that file system larger (containers have an option such as --shm-size), remove what ended jobs have "
                "left there, or use one rank, which shares nothing."
            )


def node_memory(
    proc: Path = PROC,
    cgroups: Path = CGROUPS,
    shared: Path = SHARED_MEMORY,
    environment: Mapping[str, str] = os.environ,
) -> NodeMemory:
    """Return what this node has for a job now: the least of what the machine, control groups and SLURM say.

    Parameters
    ----------
    proc, cgroups, shared : Path
        Where the system tells of processes and memory, of control groups, and where shared memory lies.
    environment : mapping
        With SLURM's variables.
    """
    limits = [Limit(_physical_bytes(), "memory of this machine")]
    with suppress(OSError, ValueError, IndexError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(Limit(int(line.split()[1]) * _KIB, f"MemAvailable in {proc / 'meminfo'}"))
    limits += [
        Limit(max(0, limit - used), f"{file}: {limit:,} bytes, of which {used:,} are in use")
        for file, limit, used in _cgroup_limits(proc, cgroups)
    ]
    limits += _slurm_limits(environment)
    return NodeMemory(min(limits, key=lambda limit: limit.bytes), _room_in(shared))


def memory_bytes(proc: Path = PROC, cgroups: Path = CGROUPS, environment: Mapping[str, str] = os.environ) -> int:
    """Return the memory that this process may use in all: the machine's, or what its limits allow."""
    limits = [_physical_bytes()]
    limits += [limit for _, limit, _ in _cgroup_limits(proc, cgroups)]
    limits += [limit.bytes for limit in _slurm_limits(environment)]
    return min(limits)


def _physical_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _slurm_limits(environment: Mapping[str, str]) -> list[Limit]:
    per_node, per_cpu, cpus = (environment.get(name, "") for name in (_SLURM_NODE, _SLURM_CPU, _SLURM_CPUS))
    if per_node.isdecimal() and int(per_node):  # 0 is all that the node has
        return [Limit(int(per_node) * _MIB, f"{_SLURM_NODE}={per_node}, in MiB")]
    if per_cpu.isdecimal() and int(per_cpu) and cpus.isdecimal():
        together = f"{_SLURM_CPU}={per_cpu}, in MiB, on {_SLURM_CPUS}={cpus} cores"
        return [Limit(int(per_cpu) * int(cpus) * _MIB, together)]
    return []


def _cgroup_limits(proc: Path, cgroups: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield file, limit and use of every control group of memory that this process is in, up to the root."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for mount in (cgroups, cgroups / "unified"):
                for group in _up_to(mount, path):
                    yield from _limit_of(group, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            for group in _up_to(cgroups / "memory", path):
                yield from _limit_of(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _up_to(mount: Path, path: str) -> Iterator[Path]:
    """Yield a control group and those that it is in; in a container, the path may begin above what is seen."""
    place = mount / path.strip("/")
    while place != mount:
        yield place
        place = place.parent
    yield mount


def _limit_of(group: Path, limit: str, usage: str, prefix: str) -> Iterator[tuple[Path, int, int]]:
    with suppress(OSError, ValueError):  # no such group, or no limit
        allowed = int((group / limit).read_text())
        used = int((group / usage).read_text())
        yield group / limit, allowed, max(0, used - _reclaimable(group, prefix))


def _reclaimable(group: Path, prefix: str) -> int:
    """Return how much of what a control group uses are pages of files, which are given up when memory is short."""
    names = (f"{prefix}inactive_file", f"{prefix}active_file")
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return sum(int(value) for name, value in pairs if name in names)
    return 0


def _room_in(shared: Path) -> Limit | None:
    try:
        there = os.statvfs(shared)
    except OSError:
        return None
    return Limit(there.f_bavail * there.f_frsize, str(shared)) if there.f_blocks else None
