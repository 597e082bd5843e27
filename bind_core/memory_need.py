"""How much memory a node needs to make the samples of a simulation, by the counts in its headers.

What is certain is kept apart from what is only expected: the arrays of particles and maps have known sizes, which no
run can do without, while the processes around them differ from machine to machine. `docs/cluster.md` has the same
formula for people.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bind_core.config import DatasetConfig, LauncherName
from bind_core.field_reading import FieldPass, ParticlePass, passes_of
from bind_core.mesh import cells_per_side_for
from bind_core.particles import particle_types
from bind_core.runners import RunnerName
from bind_core.snapshot import Component, SnapshotHeader
from bind_core.suite import Role

GIB = 1 << 30
_UNIT = 1024

MAPS_MEMORY = 2 << 30
"""Bytes of finished maps that may wait in memory; a simulation with more samples is done in several passes."""

PROCESS_MEMORY = round(0.3 * GIB)
"""Bytes of a job of one rank, before it has read anything; measured."""
RANK_MEMORY = round(0.13 * GIB)
"""Bytes that each further rank of a node adds to it; measured."""

_POSITION_BYTES = 3 * np.dtype(np.float32).itemsize
_MASS_BYTES = np.dtype(np.float32).itemsize
_CELL_BYTES = 2 * np.dtype(np.int64).itemsize
"""Of each cell, on each rank: where its particles start, and where the next one goes."""
_COPIES = 2
"""Particles are there twice while they are sorted: as they were read, and in cells."""


@dataclass(frozen=True)
class MemoryNeed:
    """What making a simulation's samples takes of a node's memory, in bytes."""

    simulation: str
    component: str
    """The component that takes most."""
    particles: int
    """Of that component."""
    particle_bytes: int
    """Its particles, twice, and the index of their cells."""
    map_bytes: int
    """Finished maps that wait to be written."""
    shared_bytes: int
    """The part of both that ranks share, in a file system of shared memory; 0 for a single rank."""
    process_bytes: int
    """The processes themselves, as measured elsewhere."""

    @property
    def certain(self) -> int:
        """Bytes without which it cannot be made: arrays alone."""
        return self.particle_bytes + self.map_bytes

    @property
    def expected(self) -> int:
        """Bytes that a node should have free before the job starts."""
        return self.certain + self.process_bytes

    def __str__(self) -> str:
        """Return how it comes about, as part of a sentence."""
        return (
            f"{shown_bytes(self.particle_bytes)} for {self.particles:,} particles of {self.component} while they are "
            f"sorted, {shown_bytes(self.map_bytes)} for maps"
        )


def maps_per_sample(config: DatasetConfig) -> int:
    """Return how many maps of a sample are made: condition, context maps, and one for each pass over the hydro run."""
    return 1 + len(config.context_sizes) + len(passes_of(config)) - 1


def map_bytes_per_sample(config: DatasetConfig) -> int:
    """Return the size of a sample's maps in memory, in bytes."""
    return maps_per_sample(config) * config.resolution**2 * np.dtype(np.float32).itemsize


def job_memory(config: DatasetConfig) -> int | None:
    """Return the bytes that a block's SLURM job asks for on each node; None if there is no such job or it does not say.

    Where a job is started in another way, it has what it finds.
    """
    submitted = config.dask.slurm if config.runner is RunnerName.DASK else config.launcher is LauncherName.SBATCH
    return config.slurm_job.memory_bytes if submitted else None


def ranks_per_node(config: DatasetConfig) -> int:
    """Return how many ranks of a block share a node."""
    return math.ceil(config.ranks / config.slurm_job.nodes) if config.launcher is LauncherName.SBATCH else config.ranks


def memory_need(
    simulation: str, config: DatasetConfig, headers: Mapping[Role, SnapshotHeader], samples: int, ranks: int
) -> MemoryNeed:
    """Return what making the samples of a simulation takes of a node's memory.

    Two components are never in memory at once but for one that is sorted and the next one as it is read, which take
    less than the larger one while it is sorted: so the largest one decides.

    Parameters
    ----------
    simulation : str
        Its name.
    config : DatasetConfig
        Gives components, further fields and the size of maps.
    headers : mapping
        One header of each snapshot.
    samples : int
        How many are to be made.
    ranks : int
        Of the node, 1 or more.
    """
    largest: tuple[int, int, str, int] = (0, 0, Component.DMO.value, 0)
    for component in passes_of(config):
        header = headers[component.role]
        count, width = _count_and_width(component, header, config)
        cells = cells_per_side_for(count, header.box_size)
        taken = _COPIES * count * width + _CELL_BYTES * cells**3 * ranks
        largest = max(largest, (taken, count * width, component.value, count))
    taken, sorted_bytes, name, count = largest
    per_sample = map_bytes_per_sample(config)
    maps = min(samples, max(1, MAPS_MEMORY // per_sample)) * per_sample
    return MemoryNeed(
        simulation=simulation,
        component=name,
        particles=count,
        particle_bytes=taken,
        map_bytes=maps,
        shared_bytes=sorted_bytes + maps if ranks > 1 else 0,
        process_bytes=PROCESS_MEMORY + RANK_MEMORY * (ranks - 1),
    )


def _count_and_width(component: ParticlePass, header: SnapshotHeader, config: DatasetConfig) -> tuple[int, int]:
    """Return the number of particles, and the bytes of each."""
    types = [kind for kind in particle_types(component, config) if kind < len(header.counts_total)]
    count = sum(header.counts_total[kind] for kind in types)
    one_mass = len(types) == 1 and types[0] < len(header.mass_table) and header.mass_table[types[0]] > 0
    own = isinstance(component, FieldPass) or not one_mass
    return count, _POSITION_BYTES + (_MASS_BYTES if own else 0)


def shown_bytes(number: float) -> str:
    """Return a number of bytes for people, in the binary unit that suits it."""
    size, unit = float(number), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < _UNIT:
            break
        size, unit = size / _UNIT, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.2f} {unit}"
