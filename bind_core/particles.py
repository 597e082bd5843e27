"""Particles of a snapshot: where each component's are, and their slices as they are read, in Mpc/h and Msun/h."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers the Blosc filter, without which the public N-body files are unreadable)
import numpy as np
from numpy.typing import NDArray

from bind_core.config import BlackHolePolicy, DatasetConfig, StarPolicy
from bind_core.digests import ParticleDigests
from bind_core.errors import BindDataError, SnapshotError
from bind_core.field_reading import FieldPass, ParticlePass, check_datasets, native_rows, read_values
from bind_core.fields import MASSES
from bind_core.snapshot import (
    KPC_PER_MPC,
    MASS_UNIT,
    Component,
    ParticleType,
    SnapshotHeader,
    attribute,
    header_attributes,
    open_hdf5,
    read_header,
    reason_of,
)
from bind_core.stored_data import member, require_stored

SLICE_ROWS = 1 << 18
"""Particles read at once: 6 MB of float64 coordinates. Digests that are on record depend on it."""

BOX_TOLERANCE = 1e-6
"""How far outside the box, in units of its size, rounding may put a position."""

_FORMATION_TIME = "GFM_StellarFormationTime"


@dataclass(frozen=True)
class Piece:
    """A range of rows of one particle type in one file."""

    path: Path
    particle_type: ParticleType
    start: int
    stop: int


@dataclass(frozen=True)
class ComponentSource:
    """Where the particles of a component, or of a further field, are, in file order."""

    component: ParticlePass
    box_size: float
    """Mpc/h."""
    pieces: tuple[Piece, ...]
    """Aligned with the files' HDF5 chunks."""
    uniform_mass: float | None
    """Msun/h if all particles have this mass; None if each has its own, or a field's number instead."""
    only_formed_stars: bool
    """Leave wind-phase gas out."""

    @property
    def count(self) -> int:
        """Number of particles in the files, before any are left out."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass
class PositionTally:
    """What was read of positions and masses, and what is wrong with them; tallies of parts add up."""

    particles: int = 0
    non_finite: int = 0
    outside: int = 0
    bad_masses: int = 0
    lowest: float = float("inf")
    """Mpc/h."""
    highest: float = float("-inf")
    """Mpc/h."""
    mass: float = 0.0
    """Msun/h."""
    file: str = ""
    """The first file."""
    bad_positions_in: str = ""
    """The first dataset with a position that is wrong."""
    bad_masses_in: str = ""
    """The first dataset with a mass that is wrong."""
    bad_values: int = 0
    """Numbers of a further field that cannot be used."""
    bad_values_in: str = ""
    """The first dataset with one of them."""
    digests: ParticleDigests = field(default_factory=ParticleDigests)
    """Of what was read."""

    def merge(self, other: "PositionTally") -> None:
        """Add the counts of a part that comes later in the files to these."""
        self.particles += other.particles
        self.non_finite += other.non_finite
        self.outside += other.outside
        self.bad_masses += other.bad_masses
        self.bad_values += other.bad_values
        self.lowest = min(self.lowest, other.lowest)
        self.highest = max(self.highest, other.highest)
        self.mass += other.mass
        self.file = self.file or other.file
        self.bad_positions_in = self.bad_positions_in or other.bad_positions_in
        self.bad_masses_in = self.bad_masses_in or other.bad_masses_in
        self.bad_values_in = self.bad_values_in or other.bad_values_in
        self.digests.merge(other.digests)


@dataclass(frozen=True)
class ParticleSlice:
    """Some particles of a component or of a further field, in file order."""

    positions: NDArray[np.float32]
    """(n, 3): Mpc/h in [0, box size)."""
    masses: NDArray[np.float32] | None
    """(n,): Msun/h, or the numbers of a field; None where the component has a uniform mass."""
    tally: PositionTally
    """What was wrong with these particles in the file."""


def particle_types(component: ParticlePass, config: DatasetConfig) -> tuple[ParticleType, ...]:
    """Return the particle types that a component, or a field, is made of under a configuration's policies."""
    if isinstance(component, FieldPass):
        return (component.particle_type,)
    if component is Component.GAS:
        return (ParticleType.GAS,)
    if component is not Component.STARS:
        return (ParticleType.DARK_MATTER,)
    if config.black_holes is BlackHolePolicy.WITH_STARS:
        return (ParticleType.STARS, ParticleType.BLACK_HOLES)
    return (ParticleType.STARS,)


def component_source(component: ParticlePass, files: Sequence[Path], config: DatasetConfig) -> ComponentSource:
    """Find out where the particles of a component or field are and how they are stored.

    Parameters
    ----------
    component : Component or FieldPass
        What to look for.
    files : sequence of Path
        The files of the component's snapshot, in chunk order.
    config : DatasetConfig
        Gives the policies for wind and black holes.

    Raises
    ------
    SnapshotError
        If a file is damaged, a dataset is missing or malformed, or particles have no mass.
    """
    pieces: list[Piece] = []
    uniform: set[float] = set()
    has_own_masses = False
    box_size = 0.0
    only_formed_stars = config.stars is StarPolicy.NO_WIND and ParticleType.STARS in particle_types(component, config)
    for path in files:
        header = read_header(path)
        box_size = header.box_size
        with open_hdf5(path) as file:
            for particle_type in particle_types(component, config):
                coordinates = checked_dataset(file, path, particle_type, "Coordinates")
                if coordinates is None:
                    continue
                if isinstance(component, FieldPass):
                    check_datasets(file, path, len(coordinates), component)
                if checked_dataset(file, path, particle_type, MASSES, optional=True) is not None:
                    has_own_masses = True
                elif not isinstance(component, FieldPass) or MASSES in component.datasets:
                    uniform.add(_table_mass(path, header, particle_type))
                if only_formed_stars and particle_type is ParticleType.STARS:
                    checked_dataset(file, path, particle_type, _FORMATION_TIME)
                pieces.extend(_pieces(path, particle_type, coordinates))
    same_mass = len(uniform) == 1 and not has_own_masses and not isinstance(component, FieldPass)
    return ComponentSource(
        component=component,
        box_size=box_size,
        pieces=tuple(pieces),
        uniform_mass=uniform.pop() if same_mass else None,
        only_formed_stars=only_formed_stars,
    )


def checked_dataset(
    file: h5py.File, path: Path, particle_type: ParticleType, name: str, *, optional: bool = False
) -> h5py.Dataset | None:
    """Return a particle dataset whose shape and type fit its coordinates.

    Returns
    -------
    h5py.Dataset or None
        None if the particle type is absent or empty, or if the dataset is missing and `optional`.

    Raises
    ------
    SnapshotError
        If the dataset is missing though there are particles, or has the wrong shape or type.
    StoredDataError
        If the file does not hold what it claims; whoever opened the file by `open_hdf5` gets it as a SnapshotError.
    """
    counts = attribute(header_attributes(file), "NumPart_ThisFile")
    counted = 0 if counts is None or len(counts) <= particle_type else int(counts[particle_type])
    where = f"{path}: dataset PartType{int(particle_type)}/{name}"
    dataset = member(file, f"PartType{int(particle_type)}/{name}")
    if not isinstance(dataset, h5py.Dataset):
        if counted == 0 or optional:
            return None
        raise SnapshotError(f"{where} is missing, though the header counts {counted} particles. Fetch the file again.")
    shape = (counted, 3) if name == "Coordinates" else (counted,)
    if dataset.shape != shape:
        raise SnapshotError(
            f"{where} has shape {dataset.shape}, but NumPart_ThisFile asks for {shape}. The file is incomplete or "
            "its header is wrong: fetch it again."
        )
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize not in (4, 8):
        raise SnapshotError(f"{where} should hold 32- or 64-bit floating-point numbers, found {dataset.dtype}.")
    require_stored(dataset, positions=name == "Coordinates")
    return dataset if counted else None


def share_of(pieces: Sequence[Piece], part: int, parts: int) -> list[Piece]:
    """Return the pieces of one of several workers.

    The workers' shares are contiguous and follow each other in file order, so that together, in the order of the
    workers, they are the particles in file order. They are balanced by rows, at the granularity of pieces.
    """
    total = sum(piece.stop - piece.start for piece in pieces)
    mine = []
    seen = 0
    for piece in pieces:
        middle = seen + (piece.stop - piece.start) / 2
        if min(parts - 1, int(middle * parts / total)) == part:
            mine.append(piece)
        seen += piece.stop - piece.start
    return mine


def read_slices(source: ComponentSource, pieces: Sequence[Piece]) -> Iterator[ParticleSlice]:
    """Read some of a component's pieces in bounded slices.

    Parameters
    ----------
    source : ComponentSource
        The component.
    pieces : sequence of Piece
        The pieces to read, in order.

    Yields
    ------
    ParticleSlice
        At most `SLICE_ROWS` particles each, unless one HDF5 chunk is larger.

    Raises
    ------
    SnapshotError
        If a dataset cannot be decompressed or read.
    """
    file: h5py.File | None = None
    try:
        for piece in pieces:
            if file is None or file.filename != str(piece.path):
                if file is not None:
                    file.close()
                file = _opened(piece.path)
            try:
                yield _read_piece(file, source, piece)
            except BindDataError:
                raise
            except Exception as error:  # damage in the file surfaces in h5py as almost any exception
                raise SnapshotError(
                    f"{piece.path}: cannot read rows {piece.start} to {piece.stop} of "
                    f"PartType{int(piece.particle_type)}: {reason_of(error)}. The file is damaged: fetch it again."
                ) from error
    finally:
        if file is not None:
            file.close()


def _opened(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except Exception as error:
        raise SnapshotError(f"{path}: cannot be opened as HDF5: {reason_of(error)}. Fetch the file again.") from error


def _read_piece(file: h5py.File, source: ComponentSource, piece: Piece) -> ParticleSlice:
    group = file[f"PartType{int(piece.particle_type)}"]
    rows = slice(piece.start, piece.stop)
    raw = native_rows(group["Coordinates"], rows)
    read = {"Coordinates": raw}
    positions = np.empty(raw.shape, dtype=np.float32)
    tally = PositionTally(particles=len(raw), file=str(piece.path))
    from bind_core.wrapping import into_box

    tally.non_finite, tally.outside, tally.lowest, tally.highest = into_box(
        raw, 1.0 / KPC_PER_MPC, source.box_size, BOX_TOLERANCE * source.box_size, positions
    )
    dataset = f"{piece.path}, PartType{int(piece.particle_type)}"
    if tally.non_finite or tally.outside:
        tally.bad_positions_in = f"{dataset}/Coordinates"
    if isinstance(source.component, FieldPass):
        field = read_values(group, rows, source.component, lambda: _mass_of_each(source, piece))
        masses: NDArray[np.float32] | None = field.values
        read |= field.read
        tally.bad_values = field.bad
        tally.bad_values_in = f"{dataset}/{field.bad_in}" if field.bad else ""
    else:
        masses = _read_masses(group, rows, source, piece, read, tally)
    if source.only_formed_stars and piece.particle_type is ParticleType.STARS:
        read[_FORMATION_TIME] = native_rows(group[_FORMATION_TIME], rows)
        formed = read[_FORMATION_TIME] > 0
        positions = positions[formed]
        masses = None if masses is None else masses[formed]
    tally.digests.add(str(piece.path), piece.particle_type, piece.start, read)
    return ParticleSlice(positions, masses, tally)


def _read_masses(
    group: h5py.Group,
    rows: slice,
    source: ComponentSource,
    piece: Piece,
    read: dict[str, NDArray],
    tally: PositionTally,
) -> NDArray[np.float32] | None:
    """Return the masses of a piece, None where they are uniform; adds to what was read and to the tally."""
    if MASSES in group:
        read[MASSES] = native_rows(group[MASSES], rows)
        own = read[MASSES].astype(np.float64) * MASS_UNIT
        with np.errstate(over="ignore", invalid="ignore"):
            masses = own.astype(np.float32)
            tally.mass = float(np.sum(own))
        tally.bad_masses = int(np.count_nonzero(~(np.isfinite(masses) & (masses > 0))))
        if tally.bad_masses:
            tally.bad_masses_in = f"{piece.path}, PartType{int(piece.particle_type)}/{MASSES}"
        return masses
    mass = _mass_of_each(source, piece)
    tally.mass = mass * (rows.stop - rows.start)
    if source.uniform_mass is not None:
        return None
    return np.full(rows.stop - rows.start, mass, dtype=np.float32)


def _mass_of_each(source: ComponentSource, piece: Piece) -> float:
    if source.uniform_mass is not None:
        return source.uniform_mass
    return _table_mass(piece.path, read_header(piece.path), piece.particle_type)


def _pieces(path: Path, particle_type: ParticleType, coordinates: h5py.Dataset) -> Iterator[Piece]:
    chunk_rows = coordinates.chunks[0] if coordinates.chunks else SLICE_ROWS
    rows = max(1, SLICE_ROWS // chunk_rows) * chunk_rows
    for start in range(0, len(coordinates), rows):
        yield Piece(path, particle_type, start, min(start + rows, len(coordinates)))


def _table_mass(path: Path, header: SnapshotHeader, particle_type: ParticleType) -> float:
    mass = header.mass_table[particle_type] if particle_type < len(header.mass_table) else 0.0
    if not mass > 0:
        raise SnapshotError(
            f"{path}: PartType{int(particle_type)} has no dataset Masses, and MassTable[{int(particle_type)}] is "
            f"{mass / MASS_UNIT:g}. One of the two must give the mass: fetch the file again."
        )
    return mass
