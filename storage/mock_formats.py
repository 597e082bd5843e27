"""Snapshots and catalogues of a mock universe, in every layout that the public suites come in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from bind_core.content import CRITICAL_DENSITY
from bind_core.mock import (
    MockCosmology,
    MockHalo,
    MockUniverse,
    ParticleBlock,
)
from bind_core.snapshot import KPC_PER_MPC, MASS_UNIT, ParticleType

PARTICLE_TYPES = 6
"""Length of the per-type arrays in a snapshot's header."""

_HDF5_CHUNK = 65536
_GATHERED_PARTICLES = 4 * _HDF5_CHUNK
_BYTES_OF_CHUNK_CACHE = 8 * 2**20
_GZIP_LEVEL = 4
_BLOSC_LEVEL = 5
# The public N-body release drops these low bits of a float32 mantissa: positions are good to 1 kpc/h in 50 Mpc/h.
_TRUNCATED_BITS = 7
_SECOND_OVERDENSITY = 500.0
# M500c of an NFW halo of typical concentration, in units of its M200c.
_M500_SHARE = 0.72


class SnapshotLayout(StrEnum):
    """Where a snapshot's files are, below the simulation's folder; 90 stands for the snapshot number."""

    SINGLE_OLD = "single-old"
    """`snap_090.hdf5`, the name before the release of 2024."""
    SINGLE_NEW = "single-new"
    """`snapshot_090.hdf5`, the name since then."""
    CHUNKED_OLD = "chunked-old"
    """`snapdir_090/snap_090.0.hdf5` and so on."""
    CHUNKED_NEW = "chunked-new"
    """`snapdir_090/snapshot_090.0.hdf5` and so on."""


class CatalogueLayout(StrEnum):
    """Where a halo catalogue's files are, below the simulation's folder; 90 stands for the snapshot number."""

    SINGLE_OLD = "single-old"
    """`fof_subhalo_tab_090.hdf5`, the name before the release of 2024."""
    SINGLE_NEW = "single-new"
    """`groups_090.hdf5`, the name since then."""
    CHUNKED_OLD = "chunked-old"
    """`groups_090/fof_subhalo_tab_090.0.hdf5` and so on."""
    CHUNKED_NEW = "chunked-new"
    """`groups_090/groups_090.0.hdf5` and so on."""


class Compression(StrEnum):
    """How a snapshot's datasets are stored."""

    NONE = "none"
    """Contiguous."""
    GZIP = "gzip"
    """Byte-shuffled and deflated, in chunks of 65536 particles."""
    BLOSC = "blosc"
    """Blosc (zstd), in chunks of 65536 particles; float32 positions with truncated mantissas. Needs `hdf5plugin`."""


@dataclass(frozen=True)
class MockFormat:
    """How the files of one simulation are written.

    Parameters
    ----------
    dmo_layout, hydro_layout : SnapshotLayout
        Names and chunking of the two snapshots. Positions are float32 in the first, float64 in the second.
    catalogue_layout : CatalogueLayout
        Names and chunking of the halo catalogue.
    dmo_compression, hydro_compression : Compression
        Storage of the snapshots' datasets.
    chunks : int
        Files of each chunked snapshot or catalogue. They are of unequal size; of two or more, the second has no stars.
    count_bits : {32, 64}
        Width of `NumPart_Total`; with 64 there is no `NumPart_Total_HighWord`.
    mass_style : {"table", "dataset"}
        Dark-matter masses in the header's `MassTable`, or in `PartType1/Masses` as in SIMBA.
    cosmology_group : {"Header", "Parameters"}
        Group whose attributes hold `Omega0`, `OmegaLambda`, `OmegaBaryon` and `HubbleParam`.
    """

    dmo_layout: SnapshotLayout = SnapshotLayout.SINGLE_NEW
    hydro_layout: SnapshotLayout = SnapshotLayout.SINGLE_NEW
    catalogue_layout: CatalogueLayout = CatalogueLayout.SINGLE_NEW
    dmo_compression: Compression = Compression.NONE
    hydro_compression: Compression = Compression.NONE
    chunks: int = 3
    count_bits: Literal[32, 64] = 32
    mass_style: Literal["table", "dataset"] = "table"
    cosmology_group: Literal["Header", "Parameters"] = "Header"

    def __post_init__(self) -> None:
        if self.chunks < 1:
            raise ValueError(f"a chunked snapshot has at least one file, got chunks={self.chunks}")
        if self.count_bits not in (32, 64):
            raise ValueError(f"count_bits is 32 or 64, got {self.count_bits}")
        if self.mass_style not in ("table", "dataset"):
            raise ValueError(f"mass_style is 'table' or 'dataset', got {self.mass_style!r}")
        if self.cosmology_group not in ("Header", "Parameters"):
            raise ValueError(f"cosmology_group is 'Header' or 'Parameters', got {self.cosmology_group!r}")


VARIED_FORMATS: tuple[MockFormat, ...] = (
    MockFormat(
        dmo_layout=SnapshotLayout.SINGLE_OLD,
        hydro_layout=SnapshotLayout.CHUNKED_OLD,
        catalogue_layout=CatalogueLayout.SINGLE_OLD,
        hydro_compression=Compression.GZIP,
    ),
    MockFormat(
        dmo_compression=Compression.BLOSC,
        hydro_compression=Compression.GZIP,
        count_bits=64,
    ),
    MockFormat(  # 10 sorts before 2 as text
        dmo_layout=SnapshotLayout.CHUNKED_NEW,
        hydro_layout=SnapshotLayout.CHUNKED_NEW,
        catalogue_layout=CatalogueLayout.CHUNKED_NEW,
        dmo_compression=Compression.BLOSC,
        chunks=12,
        mass_style="dataset",
        cosmology_group="Parameters",
    ),
    MockFormat(
        dmo_layout=SnapshotLayout.CHUNKED_OLD,
        hydro_layout=SnapshotLayout.SINGLE_OLD,
        catalogue_layout=CatalogueLayout.CHUNKED_OLD,
        dmo_compression=Compression.GZIP,
        chunks=2,
        count_bits=64,
    ),
)
"""The default mix: together they have every layout, compression, count width and mass style."""


def snapshot_files(folder: Path, layout: SnapshotLayout, number: int, chunks: int) -> tuple[Path, ...]:
    """Paths of a snapshot's files.

    Parameters
    ----------
    folder : Path
        The simulation's folder.
    layout : SnapshotLayout
        Names and chunking.
    number : int
        Snapshot number.
    chunks : int
        Number of files of a chunked snapshot.

    Returns
    -------
    tuple of Path
        One path, or one for each chunk in order.
    """
    stem = "snapshot" if layout in (SnapshotLayout.SINGLE_NEW, SnapshotLayout.CHUNKED_NEW) else "snap"
    if layout in (SnapshotLayout.SINGLE_OLD, SnapshotLayout.SINGLE_NEW):
        return (folder / f"{stem}_{number:03d}.hdf5",)
    return tuple(folder / f"snapdir_{number:03d}" / f"{stem}_{number:03d}.{i}.hdf5" for i in range(chunks))


def catalogue_files(folder: Path, layout: CatalogueLayout, number: int, chunks: int) -> tuple[Path, ...]:
    """Paths of a halo catalogue's files.

    Parameters
    ----------
    folder : Path
        The simulation's folder.
    layout : CatalogueLayout
        Names and chunking.
    number : int
        Snapshot number.
    chunks : int
        Number of files of a chunked catalogue.

    Returns
    -------
    tuple of Path
        One path, or one for each chunk in order.
    """
    stem = "groups" if layout in (CatalogueLayout.SINGLE_NEW, CatalogueLayout.CHUNKED_NEW) else "fof_subhalo_tab"
    if layout in (CatalogueLayout.SINGLE_OLD, CatalogueLayout.SINGLE_NEW):
        return (folder / f"{stem}_{number:03d}.hdf5",)
    return tuple(folder / f"groups_{number:03d}" / f"{stem}_{number:03d}.{i}.hdf5" for i in range(chunks))


def write_dmo_snapshot(paths: Sequence[Path], universe: MockUniverse, form: MockFormat) -> None:
    """Write the dark-matter-only twin's snapshot.

    Parameters
    ----------
    paths : sequence of Path
        Files to create, one for each chunk. Their folders are created.
    universe : MockUniverse
        Where the particles come from.
    form : MockFormat
        How they are stored.
    """
    _write_snapshot(
        paths,
        universe,
        form,
        counts={ParticleType.DARK_MATTER: universe.particles_per_species},
        dark_matter_mass=universe.dmo_particle_mass,
        blocks=universe.dark_matter_only(),
        coordinate_type=np.dtype(np.float32),
        compression=form.dmo_compression,
    )


def write_hydro_snapshot(paths: Sequence[Path], universe: MockUniverse, form: MockFormat) -> None:
    """Write the snapshot of the twin with baryons. A type without particles has no group.

    Parameters
    ----------
    paths : sequence of Path
        Files to create, one for each chunk. Their folders are created.
    universe : MockUniverse
        Where the particles come from.
    form : MockFormat
        How they are stored.
    """
    _write_snapshot(
        paths,
        universe,
        form,
        counts={ParticleType.DARK_MATTER: universe.particles_per_species, **universe.baryon_counts()},
        dark_matter_mass=universe.dark_matter_particle_mass,
        blocks=chain(universe.hydro_dark_matter(), universe.baryons()),
        coordinate_type=np.dtype(np.float64),
        compression=form.hydro_compression,
    )


def write_catalogue(paths: Sequence[Path], universe: MockUniverse, form: MockFormat) -> None:
    """Write the known haloes as a friends-of-friends catalogue of the dark-matter-only twin.

    Parameters
    ----------
    paths : sequence of Path
        Files to create, one for each chunk. Their folders are created. A file without groups has an empty `Group`.
    universe : MockUniverse
        Whose haloes are written, in their order.
    form : MockFormat
        How they are stored.
    """
    halos = universe.halos
    columns = _catalogue_columns(halos, universe.dmo_particle_mass, universe.box_size)
    sizes = _parts(len(halos), len(paths), phase=1)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for path, start, size in zip(paths, starts, sizes, strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            header = _header(file, universe, form)
            header["Ngroups_ThisFile"] = np.uint64(size)
            header["Ngroups_Total"] = np.uint64(len(halos))
            header["Nsubgroups_ThisFile"] = np.uint64(0)
            header["Nsubgroups_Total"] = np.uint64(0)
            header["NumFiles"] = np.int32(len(paths))
            group = file.create_group("Group")
            if size:
                for name, column in columns.items():
                    group.create_dataset(name, data=column[start : start + size], track_times=False)


def _catalogue_columns(halos: Sequence[MockHalo], particle_mass: float, box_size: float) -> dict[str, NDArray[Any]]:
    positions = np.array([halo.position for halo in halos]).reshape(-1, 3)
    m200c = np.array([halo.m200c for halo in halos])
    fof = np.array([halo.fof_mass for halo in halos])
    m500c = _M500_SHARE * m200c
    r500c = np.cbrt(3.0 * m500c / (4.0 * np.pi * _SECOND_OVERDENSITY * CRITICAL_DENSITY))
    lengths = np.maximum(np.round(fof / particle_mass), 1).astype(np.int32)
    length_by_type = np.zeros((len(halos), PARTICLE_TYPES), dtype=np.int32)
    length_by_type[:, ParticleType.DARK_MATTER] = lengths
    return {
        "GroupLen": lengths,
        "GroupLenType": length_by_type,
        "GroupMass": (fof / MASS_UNIT).astype(np.float32),
        "GroupPos": _stored_positions(positions, box_size, np.dtype(np.float32), Compression.NONE),
        "GroupVel": np.zeros((len(halos), 3), dtype=np.float32),
        "Group_M_Crit200": (m200c / MASS_UNIT).astype(np.float32),
        "Group_M_Crit500": (m500c / MASS_UNIT).astype(np.float32),
        "Group_R_Crit200": (np.array([halo.r200c for halo in halos]) * KPC_PER_MPC).astype(np.float32),
        "Group_R_Crit500": (r500c * KPC_PER_MPC).astype(np.float32),
    }


def _write_snapshot(
    paths: Sequence[Path],
    universe: MockUniverse,
    form: MockFormat,
    *,
    counts: Mapping[ParticleType, int],
    dark_matter_mass: float,
    blocks: Iterable[ParticleBlock],
    coordinate_type: np.dtype[Any],
    compression: Compression,
) -> None:
    per_file = {
        kind: _parts(count, len(paths), phase=int(kind), empty=1 if kind > ParticleType.DARK_MATTER else None)
        for kind, count in counts.items()
    }
    dark_matter_dataset = form.mass_style == "dataset"
    mass_table = np.zeros(PARTICLE_TYPES)
    if not dark_matter_dataset:
        mass_table[ParticleType.DARK_MATTER] = dark_matter_mass / MASS_UNIT
    total = np.zeros(PARTICLE_TYPES, dtype=np.uint64)
    for kind, count in counts.items():
        total[kind] = count

    files = []
    try:
        for number, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = h5py.File(path, "w", rdcc_nbytes=_BYTES_OF_CHUNK_CACHE)
            files.append(file)
            header = _header(file, universe, form)
            header["MassTable"] = mass_table
            header["NumFilesPerSnapshot"] = np.int32(len(paths))
            here = np.zeros(PARTICLE_TYPES, dtype=np.uint64)
            for kind, sizes in per_file.items():
                here[kind] = sizes[number]
            if form.count_bits == 32:
                header["NumPart_ThisFile"] = here.astype(np.int32)
                header["NumPart_Total"] = (total % np.uint64(2**32)).astype(np.uint32)
                header["NumPart_Total_HighWord"] = (total // np.uint64(2**32)).astype(np.uint32)
            else:
                header["NumPart_ThisFile"] = here.astype(np.uint64)
                header["NumPart_Total"] = total
            for kind, sizes in per_file.items():
                if sizes[number]:
                    has_masses = kind is not ParticleType.DARK_MATTER or dark_matter_dataset
                    _create_datasets(file, kind, sizes[number], coordinate_type, compression, has_masses)
        streams = {kind: _TypeStream(files, kind, sizes) for kind, sizes in per_file.items()}
        for block in _gathered(blocks):
            coordinates = _stored_positions(block.positions, universe.box_size, coordinate_type, compression)
            streams[block.kind].append(block, coordinates)
    finally:
        for file in files:
            file.close()


def _gathered(blocks: Iterable[ParticleBlock]) -> Iterator[ParticleBlock]:
    """Join the blocks of each type until they fill a few HDF5 chunks: fewer and larger writes."""
    waiting: dict[ParticleType, list[ParticleBlock]] = {}
    for block in blocks:
        kept = waiting.setdefault(block.kind, [])
        kept.append(block)
        if sum(len(part.ids) for part in kept) >= _GATHERED_PARTICLES:
            yield _joined(waiting.pop(block.kind))
    for kept in waiting.values():
        yield _joined(kept)


def _joined(blocks: Sequence[ParticleBlock]) -> ParticleBlock:
    times = [block.formation_times for block in blocks if block.formation_times is not None]
    return ParticleBlock(
        blocks[0].kind,
        np.concatenate([block.positions for block in blocks]),
        np.concatenate([block.masses for block in blocks]),
        np.concatenate([block.ids for block in blocks]),
        np.concatenate(times) if times else None,
    )


def _header(file: h5py.File, universe: MockUniverse, form: MockFormat) -> h5py.AttributeManager:
    header = file.create_group("Header").attrs
    header["BoxSize"] = universe.box_size * KPC_PER_MPC
    header["Redshift"] = 0.0
    header["Time"] = 1.0
    group = header if form.cosmology_group == "Header" else file.create_group(form.cosmology_group).attrs
    for name, value in cosmology_attributes(universe.cosmology).items():
        group[name] = value
    return header


def cosmology_attributes(cosmology: MockCosmology) -> dict[str, float]:
    """Attributes by which a file states its cosmology.

    Parameters
    ----------
    cosmology : MockCosmology
        The flat cosmology to state.

    Returns
    -------
    dict of str to float
        `Omega0`, `OmegaLambda`, `OmegaBaryon` and `HubbleParam`.
    """
    return {
        "Omega0": cosmology.omega_matter,
        "OmegaLambda": 1.0 - cosmology.omega_matter,
        "OmegaBaryon": cosmology.omega_baryon,
        "HubbleParam": cosmology.hubble,
    }


def _create_datasets(
    file: h5py.File,
    kind: ParticleType,
    count: int,
    coordinate_type: np.dtype[Any],
    compression: Compression,
    has_masses: bool,
) -> None:
    group = file.create_group(f"PartType{int(kind)}")
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {"Coordinates": ((count, 3), coordinate_type)}
    if kind is ParticleType.STARS:
        shapes["GFM_StellarFormationTime"] = ((count,), np.float32)
    if has_masses:
        shapes["Masses"] = ((count,), np.float32)
    shapes["ParticleIDs"] = ((count,), np.uint32 if _fits_32_bits(file) else np.uint64)
    for name, (shape, dtype) in shapes.items():
        storage: dict[str, Any] = {}
        if compression is not Compression.NONE:
            storage["chunks"] = (min(count, _HDF5_CHUNK), *shape[1:])
        if compression is Compression.GZIP:
            storage |= {"compression": "gzip", "compression_opts": _GZIP_LEVEL, "shuffle": True}
        elif compression is Compression.BLOSC:
            storage |= hdf5plugin.Blosc(cname="zstd", clevel=_BLOSC_LEVEL, shuffle=hdf5plugin.Blosc.BITSHUFFLE)
        group.create_dataset(name, shape=shape, dtype=dtype, track_times=False, **storage)


def _fits_32_bits(file: h5py.File) -> bool:
    return int(file["Header"].attrs["NumPart_Total"].astype(np.uint64).sum()) < 2**32


def _stored_positions(
    positions: NDArray[np.float64], box_size: float, dtype: np.dtype[Any], compression: Compression
) -> NDArray[Any]:
    stored = (positions * KPC_PER_MPC).astype(dtype)
    if dtype == np.float32 and compression is Compression.BLOSC:
        stored.view(np.uint32)[...] &= np.uint32(2**32 - 2**_TRUNCATED_BITS)
    stored[stored >= box_size * KPC_PER_MPC] = 0.0  # rounded up to the box's far side, which is its near side
    return stored


class _TypeStream:
    """Appends the particles of one type to the chunks of a snapshot, one after the other."""

    def __init__(self, files: Sequence[h5py.File], kind: ParticleType, sizes: Sequence[int]) -> None:
        self._kind = kind
        self._pending = [(file, size) for file, size in zip(files, sizes, strict=True) if size]
        self._datasets: dict[str, h5py.Dataset] = {}
        self._filled = 0

    def append(self, block: ParticleBlock, coordinates: NDArray[Any]) -> None:
        values: dict[str, Any] = {
            "Coordinates": coordinates,
            "Masses": block.masses / MASS_UNIT,
            "ParticleIDs": block.ids,
            "GFM_StellarFormationTime": block.formation_times,
        }
        done = 0
        while done < len(coordinates):
            file, size = self._pending[0]
            if not self._datasets:
                self._datasets = dict(file[f"PartType{int(self._kind)}"].items())
            step = min(size - self._filled, len(coordinates) - done)
            for name, dataset in self._datasets.items():
                dataset[self._filled : self._filled + step] = values[name][done : done + step]
            done += step
            self._filled += step
            if self._filled == size:  # lets go of the datasets, and so of their chunk caches
                self._pending.pop(0)
                self._datasets = {}
                self._filled = 0


def _parts(count: int, parts: int, *, phase: int, empty: int | None = None) -> list[int]:
    """Sizes of unequal parts that add up to `count`; part number `empty` gets nothing if there is another."""
    weights = np.array([2 + (3 * i + phase) % 4 for i in range(parts)])
    if empty is not None and parts > empty:
        weights[empty] = 0
    bounds = count * np.concatenate([[0], np.cumsum(weights)]) // weights.sum()
    return [int(size) for size in np.diff(bounds)]
