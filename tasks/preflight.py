"""What a run will take, against what is there, before it begins: disk for its samples, memory of a node.

Knows no Prefect. Disk decides whether a run begins. Memory is looked at here so that people hear of it early; whether a
simulation fits is decided where the memory is, by `tasks.projection_job`, or from what its SLURM job asks for, by
`storage.blocks`.
"""

from collections.abc import Callable

from bind_core.config import DatasetConfig, LauncherName
from bind_core.errors import SnapshotError
from bind_core.memory_need import MemoryNeed, job_memory, memory_need, ranks_per_node, shown_bytes
from bind_core.runners import RunnerName
from bind_core.snapshot import read_header
from storage.manifest import Manifest
from storage.room import disk_room, require_room, snapshot_bytes
from storage.workload import Workload
from tasks.node_memory import Limit, node_memory


def check_resources(
    config: DatasetConfig,
    manifest: Manifest,
    workload: Workload,
    tell: Callable[[str], None],
    *,
    batch_ranks: int | None = None,
) -> None:
    """Make sure that a run can keep its samples, and say what else may not fit; nothing is written.

    Parameters
    ----------
    config : DatasetConfig
        Of the run.
    manifest : Manifest
        Of the data set.
    workload : Workload
        What is to be made.
    tell : callable
        Called with each warning.
    batch_ranks : int, optional
        Ranks of this node, for a run that is an MPI job itself; by default blocks are jobs of their own.

    Raises
    ------
    NoRoomError
        If the samples cannot fit on the disk.
    """
    require_room(config, manifest, workload, tell)
    need, there = _memory(config, workload, batch_ranks)
    if need is None or there is None:
        return
    blocks = 1 if batch_ranks else min(_blocks_here(config), len(workload.blocks(config.simulations_per_block)))
    if blocks * need.expected > there.bytes:
        at_once = f" {blocks} blocks at once take {shown_bytes(blocks * need.expected)}." if blocks > 1 else ""
        tell(
            f"Memory may not suffice: {_in_words(need)}.{at_once} {shown_bytes(there.bytes)} are there "
            f"({there.source}). Take a node, or ask for a job (slurm_job.memory), with more, or work on fewer blocks "
            "at once (concurrent_blocks, dask.workers). Simulations that cannot fit fail; the others are made."
        )


def estimates(
    config: DatasetConfig, manifest: Manifest, workload: Workload, *, batch_ranks: int | None = None
) -> list[str]:
    """Return in words what a run would take of disk and memory; empty if it has nothing to make.

    Parameters
    ----------
    config, manifest, workload, batch_ranks
        As of `check_resources`.

    Raises
    ------
    NoRoomError
        If the run would be refused.
    """
    if not workload.samples:
        return []
    root, room = manifest.layout.root, disk_room(manifest.layout.root)
    free = "" if room is None else f"; {shown_bytes(room.bytes)} are free for {root}"
    disk = require_room(config, manifest, workload, lambda warning: None)  # the line says it all
    lines = [f"Disk: {disk}{free}."]
    need, there = _memory(config, workload, batch_ranks)
    if need is not None:
        available = "" if there is None else f"; {shown_bytes(there.bytes)} are there ({there.source})"
        lines.append(f"Memory of a node: {_in_words(need)}{available}.")
    return lines


def largest_need(config: DatasetConfig, workload: Workload, ranks: int) -> MemoryNeed | None:
    """Return the memory that the largest simulation takes, by the size of its files; None where headers do not say.

    Parameters
    ----------
    config : DatasetConfig
        Gives components and maps.
    workload : Workload
        What is to be made.
    ranks : int
        Of a node.
    """
    outstanding = [work for work in workload.outstanding if work.to_make]
    if not outstanding:
        return None
    work = max(outstanding, key=snapshot_bytes)
    try:
        headers = {inputs.role: read_header(inputs.files[0]) for inputs in (work.files.dmo, work.files.hydro)}
    except (SnapshotError, IndexError):  # validation says what is wrong with it
        return None
    return memory_need(work.files.name, config, headers, len(work.to_make), ranks)


def _memory(
    config: DatasetConfig, workload: Workload, batch_ranks: int | None
) -> tuple[MemoryNeed | None, Limit | None]:
    """Return what the largest simulation takes, and what there is for it; None for what is not known here."""
    need = largest_need(config, workload, batch_ranks or ranks_per_node(config))
    asked = None if batch_ranks else job_memory(config)
    if asked is not None:
        return need, Limit(asked, f"slurm_job.memory: {config.slurm_job.memory}")
    return need, node_memory().free if batch_ranks or _is_here(config) else None


def _is_here(config: DatasetConfig) -> bool:
    """Whether blocks are worked on by this machine."""
    if config.runner is RunnerName.DASK and (config.dask.slurm or config.dask.address):
        return False
    return config.launcher is LauncherName.MPIEXEC


def _blocks_here(config: DatasetConfig) -> int:
    """Return how many blocks share a node's memory at once."""
    if not _is_here(config):
        return 1
    return config.dask.workers if config.runner is RunnerName.DASK else config.concurrent_blocks


def _in_words(need: MemoryNeed) -> str:
    return (
        f"{need.simulation}, the largest, takes about {shown_bytes(need.expected)} ({need}, "
        f"{shown_bytes(need.process_bytes)} for processes)"
    )
