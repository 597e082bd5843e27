"""Room on disk for the samples of a run: what they will take, against what is free, before anything is read.

How well maps compress depends on how full they are, so there are two estimates: one that a run is certain to exceed,
below which it is refused, and one that it will not exceed, below which a warning is due. Samples of the same settings
that exist say more than any formula.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError, SnapshotError
from bind_core.memory_need import map_bytes_per_sample, shown_bytes
from bind_core.snapshot import ParticleType, read_header
from bind_core.splits import split_of
from bind_core.suite import Role
from storage.columns import SAMPLES
from storage.manifest import Manifest
from storage.tables import read_rows
from storage.workload import SimulationWork, Workload

LEAST_COMPRESSED = ((0.25, 0.4), (0.03, 0.18), (0.0035, 0.05), (0.0, 0.01))
"""Part of their maps' bytes that samples take at least, from a number of dark-matter particles in a native pixel on.

Measured in the emptiest sample: 0.57 for 0.25 particles in a pixel (64^3 in the box, 128^2 pixels, real simulations),
0.25 for 0.031 (32^3, likewise, without stars), 0.077 for 0.0039 (16^3, mock); 0.75 and more above 0.5. Real suites
have 100 and more: 0.0156 of a box of 512^3 particles is in the native window.
"""
MOST_COMPRESSED = 1.02
"""Part of their maps' bytes that samples take at most, but for `_BESIDE_MAPS`. Measured: 0.77 on 128^2 pixels, where
particles are many, and 1.008 on 16^2 with everything that is beside the maps."""

_BESIDE_MAPS = 4096
"""Bytes of a sample's other arrays and names, at most."""
_MARGIN = 1.25
"""How far outside of the sizes of those that exist the mean size of further samples may lie, as a factor."""
_RECORD = 2048
"""Bytes of the manifest and of work files for each sample, at most."""


class NoRoomError(BindDataError):
    """A run whose samples cannot fit on the disk, found out before it began."""


@dataclass(frozen=True)
class DiskNeed:
    """What the samples of a run will take on disk."""

    samples: int
    least: int
    """Bytes that they are certain to take."""
    most: int
    """Bytes that they will not exceed, with what is recorded of them."""
    reason: str
    """How the estimate came about, as part of a sentence."""

    def __str__(self) -> str:
        """Return the estimate in words."""
        return f"{shown_bytes(self.least)} to {shown_bytes(self.most)} for {self.samples:,} samples ({self.reason})"


@dataclass(frozen=True)
class DiskRoom:
    """What is free for this user; quotas are not known to it."""

    bytes: int
    files: int | None
    """Files that can still be made; None where the file system has no such limit."""
    folder: Path
    """Folder on that file system."""


def disk_need(config: DatasetConfig, manifest: Manifest, workload: Workload) -> DiskNeed:
    """Return what a workload will take on disk.

    Samples that are made anew count in full: what they replace is kept.

    Parameters
    ----------
    config : DatasetConfig
        Gives the size of maps.
    manifest : Manifest
        Knows the sizes of samples of the same settings.
    workload : Workload
        What is to be made.
    """
    maps = map_bytes_per_sample(config)
    same = pl.col("config_digest") == config.digest
    sizes = read_rows(manifest.layout.samples_table, SAMPLES, columns=["bytes"], where=same)["bytes"]
    if sizes.len():
        smallest, largest = int(sizes.min()), int(sizes.max())  # type: ignore[arg-type]
        least, most = smallest / _MARGIN, largest * _MARGIN
        reason = (
            f"those {sizes.len():,} of the same settings that exist have {shown_bytes(smallest)} to "
            f"{shown_bytes(largest)} each, taken with a margin of {_MARGIN - 1:.0%}"
        )
    else:
        filled = _particles_per_pixel(config, workload)
        part = next(part for particles, part in LEAST_COMPRESSED if filled >= particles)
        least, most = part * maps, MOST_COMPRESSED * maps + _BESIDE_MAPS
        reason = (
            f"their maps have {shown_bytes(maps)} each, of which compressed files of {filled:.2g} particles in a pixel "
            f"take {part:.0%} to {MOST_COMPRESSED:.0%}; none of the same settings exists yet"
        )
    count = workload.samples
    return DiskNeed(count, round(count * least), round(count * (most + _RECORD)), reason)


def disk_room(root: Path) -> DiskRoom | None:
    """Return what is free where a data set lies, or will lie; None where the file system does not say."""
    folder = next((place for place in (root, *root.parents) if place.exists()), root)
    try:
        there = os.statvfs(folder)
    except OSError:
        return None
    if not there.f_blocks:
        return None
    return DiskRoom(there.f_bavail * there.f_frsize, there.f_favail if there.f_files else None, folder)


def require_room(
    config: DatasetConfig, manifest: Manifest, workload: Workload, tell: Callable[[str], None]
) -> DiskNeed:
    """Make sure that the samples of a workload can fit on the disk; nothing is written.

    Of several runs that make parts of a suite, each looks at its own part.

    Parameters
    ----------
    config : DatasetConfig
        Gives the place and the size of maps.
    manifest : Manifest
        Of the data set.
    workload : Workload
        What is to be made.
    tell : callable
        Called with a warning, if they may not fit.

    Returns
    -------
    DiskNeed
        What they will take.

    Raises
    ------
    NoRoomError
        If even the least that they can take is not free.
    """
    root = manifest.layout.root
    need, room = disk_need(config, manifest, workload), disk_room(root)
    if room is None:
        return need
    advice = (
        "Free some space there, give another output_root, or make fewer samples at once: fewer simulations, rotations "
        "or strata. A refresh keeps what it replaces, in superseded/."
    )
    out_of_files = room.files is not None and need.samples > room.files
    if need.least > room.bytes or out_of_files:  # else there is no need to look for files one by one
        left = _sizes_left(config, manifest, workload)
        if need.least - sum(left) > room.bytes:
            raise NoRoomError(
                f"output_root: {root} has no room for what this run would write: {need}. On the file system of "
                f"{room.folder}, {shown_bytes(room.bytes)} are free, too little even for the least. Nothing was read "
                f"or written. {advice}"
            )
        if room.files is not None and need.samples - len(left) > room.files:
            raise NoRoomError(
                f"output_root: {root} has no room for the {need.samples - len(left):,} files that this run would make: "
                f"on the file system of {room.folder}, {room.files:,} more can be made (inodes). Nothing was read or "
                f"written. {advice}"
            )
    if need.most > room.bytes:
        tell(
            f"output_root: {root} may become too small for what this run writes: {need}. On the file system of "
            f"{room.folder}, {shown_bytes(room.bytes)} are free. If it does, the run ends without damage, and goes on "
            f"when there is room. {advice}"
        )
    return need


def snapshot_bytes(work: SimulationWork) -> int:
    """Return the size of a simulation's snapshots, in bytes."""
    return sum(file.bytes or 0 for file in work.inputs if file.role in (Role.DMO.value, Role.HYDRO.value))


def _particles_per_pixel(config: DatasetConfig, workload: Workload) -> float:
    """Return how many dark-matter particles a native pixel has on average, in the smallest simulation; 0 if unknown."""
    to_make = [work for work in workload.outstanding if work.to_make and work.files.dmo.files]
    if not to_make:
        return 0.0
    try:
        header = read_header(min(to_make, key=snapshot_bytes).files.dmo.files[0])
    except SnapshotError:  # validation says what is wrong with it
        return 0.0
    volume = config.window_size**2 * config.depth / header.box_size**3
    return header.counts_total[ParticleType.DARK_MATTER] * volume / config.resolution**2


def _sizes_left(config: DatasetConfig, manifest: Manifest, workload: Workload) -> list[int]:
    """Return the sizes of files that a killed run has left, and that this one writes over."""
    layout, sizes = manifest.layout, []
    for work in workload.outstanding:
        split = split_of(work.files.name, work.files.number, config)
        for target in work.to_make:
            if target.sample_id not in work.replaced:
                with suppress(OSError):
                    place = layout.sample_path(split, target.simulation, target.halo, target.rotation)
                    sizes.append(place.stat().st_size)
    return sizes
