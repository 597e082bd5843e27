"""Defects on request: each spoils a correctly written mock simulation in one known way."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401  (registers the Blosc filter, without which compressed datasets cannot be edited)
import numpy as np

from bind_core.mock import MASSIVE
from bind_core.snapshot import KPC_PER_MPC, MASS_UNIT, ParticleType

_GAS = f"PartType{int(ParticleType.GAS)}"
_DARK_MATTER = f"PartType{int(ParticleType.DARK_MATTER)}"
# By how much a cosmological parameter is off where it should disagree.
_PARAMETER_ERROR = 0.05
_WRONG_REDSHIFT = 0.5
_WRONG_FACTOR = 1.5
# How far out of the box a position is put, in box sizes.
_OUTSIDE = 1.2
_KEPT_OF_TRUNCATED = 0.6
_DOWNLOADED_PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head></html>\n"


class Defect(StrEnum):
    """What can be wrong with a simulation; the last few are legitimate and only look wrong."""

    MISSING_DMO_SNAPSHOT = "missing-dmo-snapshot"
    """The dark-matter-only folder is there, but has no snapshot."""
    MISSING_HYDRO_SNAPSHOT = "missing-hydro-snapshot"
    """The hydro folder is there, but has no snapshot."""
    MISSING_CATALOGUE = "missing-catalogue"
    """The catalogue's folder is there, but has no catalogue."""
    MISSING_FIRST_CHUNK = "missing-first-chunk"
    """The first file of a chunked snapshot is gone (the hydro one where both are chunked)."""
    MISSING_MIDDLE_CHUNK = "missing-middle-chunk"
    """A file from the middle of a chunked snapshot is gone (the hydro one where both are chunked)."""
    MISSING_LAST_CHUNK = "missing-last-chunk"
    """The last file of a chunked snapshot is gone (the hydro one where both are chunked)."""
    MISSING_CATALOGUE_CHUNK = "missing-catalogue-chunk"
    """The last file of a chunked catalogue is gone."""
    EXTRA_CHUNK = "extra-chunk"
    """A file of an earlier, longer chunked snapshot lies after the last one (the hydro one where both are chunked)."""
    AMBIGUOUS_SNAPSHOT = "ambiguous-snapshot"
    """A DMO snapshot with other content lies beside the first, under the other generation's name."""
    WRONG_TOTAL_COUNT = "wrong-total-count"
    """All hydro files agree on one dark-matter particle more than they hold."""
    WRONG_FILE_COUNT = "wrong-file-count"
    """The first DMO file claims one particle more than its dataset has."""
    WRONG_NUMBER_OF_FILES = "wrong-number-of-files"
    """All hydro files claim one file more than there are."""
    TRUNCATED_FILE = "truncated-file"
    """The last hydro file ends early, as after a full disk."""
    NOT_HDF5 = "not-hdf5"
    """The first DMO file is a web page, as after a failed download."""
    MISSING_HEADER = "missing-header"
    """The first DMO file has no Header."""
    MISSING_COORDINATES = "missing-coordinates"
    """The last DMO file has no Coordinates."""
    MISSING_GAS_MASSES = "missing-gas-masses"
    """The first hydro file has no gas Masses."""
    MISSING_HALO_MASSES = "missing-halo-masses"
    """The catalogue has no Group_M_Crit200."""
    NAN_POSITIONS = "nan-positions"
    """One DMO particle has a position that is not a number."""
    INFINITE_POSITIONS = "infinite-positions"
    """One gas particle is at infinity."""
    POSITIONS_OUT_OF_BOX = "positions-out-of-box"
    """One hydro dark-matter particle is outside the box."""
    POSITIONS_IN_MPC = "positions-in-mpc"
    """All hydro positions are in Mpc/h, so they fill one corner of the box."""
    BOX_SIZE_IN_MPC = "box-size-in-mpc"
    """All headers give the box size in Mpc/h, so most positions are outside."""
    NEGATIVE_MASS = "negative-mass"
    """One gas particle has a negative mass."""
    ZERO_MASS = "zero-mass"
    """One gas particle has no mass."""
    WRONG_PARTICLE_MASS = "wrong-particle-mass"
    """DMO particles are half again as heavy as the box's matter allows."""
    HYDRO_BOX_SIZE = "hydro-box-size"
    """The hydro header gives another box size."""
    CATALOGUE_BOX_SIZE = "catalogue-box-size"
    """The catalogue's header gives another box size."""
    HYDRO_OMEGA0 = "hydro-omega0"
    """The hydro header gives another matter density."""
    CATALOGUE_OMEGA0 = "catalogue-omega0"
    """The catalogue's header gives another matter density."""
    HYDRO_HUBBLE_PARAM = "hydro-hubble-param"
    """The hydro header gives another Hubble parameter."""
    CATALOGUE_HUBBLE_PARAM = "catalogue-hubble-param"
    """The catalogue's header gives another Hubble parameter."""
    HYDRO_REDSHIFT = "hydro-redshift"
    """The hydro snapshot is of another time."""
    CATALOGUE_REDSHIFT = "catalogue-redshift"
    """The catalogue is of another time."""
    NO_PARAMETER_ROW = "no-parameter-row"
    """The parameter table does not name the simulation."""
    PARAMETERS_CONTRADICT_HEADER = "parameters-contradict-header"
    """The parameter table gives another Omega0 than the headers."""
    DUPLICATED_PARAMETER_ROW = "duplicated-parameter-row"
    """The parameter table names the simulation twice, with another sigma8 the second time."""
    MISPAIRED = "mispaired"
    """The hydro snapshot has other phases, though every header agrees."""
    NO_HYDRO_DARK_MATTER = "no-hydro-dark-matter"
    """The hydro snapshot has gas and stars but no dark matter."""
    HALO_OUT_OF_BOX = "halo-out-of-box"
    """The first halo's position is outside the box."""
    HALO_POSITION_NAN = "halo-position-nan"
    """The first halo's position is not a number."""
    HALO_MASS_NAN = "halo-mass-nan"
    """The first halo's M200c is not a number."""
    EMPTY_CATALOGUE = "empty-catalogue"
    """The catalogue has no groups and so no `Group` datasets. Legitimate: there is no work."""
    NO_MASSIVE_HALO = "no-massive-halo"
    """No halo has M200c above 1e13 Msun/h. Legitimate: there is no work."""
    NO_STARS = "no-stars"
    """No star has formed, so there is no PartType4. Legitimate."""


@dataclass(frozen=True)
class WrittenSimulation:
    """The files of a mock simulation and its rows of the parameter table, to be spoilt.

    Parameters
    ----------
    dmo, hydro, catalogue : tuple of Path
        Files in chunk order.
    rows : tuple of dict of str to str
        Rows of the parameter table: column to text; one before any defect.
    """

    dmo: tuple[Path, ...]
    hydro: tuple[Path, ...]
    catalogue: tuple[Path, ...]
    rows: tuple[dict[str, str], ...]


PARTICLE_DEFECTS = frozenset({Defect.MISPAIRED, Defect.NO_STARS})
"""Defects that are made with the particles, not by an edit afterwards."""


def spoil_files(simulation: WrittenSimulation, defect: Defect) -> None:
    """Give a simulation's files a defect, in place.

    Parameters
    ----------
    simulation : WrittenSimulation
        Whose files are edited.
    defect : Defect
        What to spoil. Defects of the parameter table and of the particles change no file.

    Raises
    ------
    ValueError
        If the defect needs a chunked layout, or more chunks, than the simulation has.
    """
    edit = _FILE_EDITS.get(defect)
    if edit is not None:
        edit(simulation)


def spoilt_rows(rows: Sequence[dict[str, str]], defect: Defect) -> tuple[dict[str, str], ...]:
    """Give a simulation's rows of the parameter table a defect.

    Parameters
    ----------
    rows : sequence of dict of str to str
        Column to text.
    defect : Defect
        What to spoil; defects of files leave the rows as they are.

    Returns
    -------
    tuple of dict of str to str
        The rows to write.
    """
    if defect is Defect.NO_PARAMETER_ROW:
        return ()
    if defect is Defect.PARAMETERS_CONTRADICT_HEADER:
        return tuple(_shifted(row, "Omega0") for row in rows)
    if defect is Defect.DUPLICATED_PARAMETER_ROW:
        return (*rows, *(_shifted(row, "sigma8") for row in rows))
    return tuple(rows)


def _shifted(row: dict[str, str], column: str) -> dict[str, str]:
    return row | {column: f"{float(row[column]) + _PARAMETER_ERROR:.5g}"}


def _removed(*files: Path) -> None:
    for file in files:
        file.unlink()


def _chunks(simulation: WrittenSimulation, defect: Defect, least: int) -> tuple[Path, ...]:
    for files in (simulation.hydro, simulation.dmo):
        if len(files) >= least:
            return files
    raise ValueError(
        f"defect {defect} needs a snapshot of at least {least} files, but the DMO snapshot has "
        f"{len(simulation.dmo)} and the hydro one {len(simulation.hydro)}; choose a chunked layout"
    )


def _remove_catalogue_chunk(simulation: WrittenSimulation) -> None:
    if len(simulation.catalogue) < 2:
        raise ValueError(f"defect {Defect.MISSING_CATALOGUE_CHUNK} needs a chunked catalogue; choose such a layout")
    _removed(simulation.catalogue[-1])


def _overwrite(path: Path) -> None:
    path.write_bytes(_DOWNLOADED_PAGE)


def _add_chunk(files: Sequence[Path]) -> None:
    stem = files[-1].name.removesuffix(f".{len(files) - 1}.hdf5")
    shutil.copyfile(files[-1], files[-1].with_name(f"{stem}.{len(files)}.hdf5"))


def _add_rival(files: Sequence[Path]) -> None:
    """Copy a snapshot to the names of the other generation, and move one particle in the copy."""
    copies = []
    for path in files:
        old, new = ("snapshot_", "snap_") if path.name.startswith("snapshot_") else ("snap_", "snapshot_")
        copies.append(path.with_name(path.name.replace(old, new, 1)))
        shutil.copyfile(path, copies[-1])
    _set_middle(copies, f"{_DARK_MATTER}/Coordinates", lambda x, _: np.zeros_like(x))


def _cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(int(_KEPT_OF_TRUNCATED * path.stat().st_size))


def _set_attribute(
    files: Sequence[Path], change: Callable[[Any], Any], *names: str, groups: Sequence[str] = ("Header", "Parameters")
) -> None:
    """Change attributes, in whichever group they are."""
    for path in files:
        with h5py.File(path, "r+") as file:
            for name in names:
                for group in groups:
                    if group in file and name in file[group].attrs:
                        old = file[group].attrs[name]
                        file[group].attrs[name] = np.asarray(change(old), dtype=np.asarray(old).dtype)


def _one_more(kind: ParticleType) -> Callable[[Any], Any]:
    def change(counts: Any) -> Any:
        counts = np.array(counts)
        counts[kind] += 1
        return counts

    return change


def _delete(files: Sequence[Path], name: str) -> None:
    for path in files:
        with h5py.File(path, "r+") as file:
            if name in file:
                del file[name]


def _set_middle(files: Sequence[Path], name: str, change: Callable[[Any, float], Any]) -> None:
    """Change the middle value of a dataset in the last file that has it; `change` gets value and box size (ckpc/h)."""
    for path in reversed(files):
        with h5py.File(path, "r+") as file:
            if name in file:
                dataset = file[name]
                middle = len(dataset) // 2
                dataset[middle] = change(dataset[middle], float(file["Header"].attrs["BoxSize"]))
                return
    raise ValueError(f"no file of {[str(path) for path in files]} has the dataset {name} that is to be spoilt")


def _set_first_halo(files: Sequence[Path], name: str, change: Callable[[Any, float], Any]) -> None:
    with h5py.File(files[0], "r+") as file:
        dataset = file["Group"][name]
        dataset[0] = change(dataset[0], float(file["Header"].attrs["BoxSize"]))


def _positions_in_mpc(files: Sequence[Path]) -> None:
    for path in files:
        with h5py.File(path, "r+") as file:
            for group in file.values():
                if "Coordinates" in group:
                    dataset = group["Coordinates"]
                    step = dataset.chunks[0] if dataset.chunks else len(dataset)
                    for start in range(0, len(dataset), step):
                        dataset[start : start + step] = dataset[start : start + step] / KPC_PER_MPC


def _without_dark_matter(files: Sequence[Path]) -> None:
    def none(counts: Any) -> Any:
        counts = np.array(counts)
        counts[ParticleType.DARK_MATTER] = 0
        return counts

    _delete(files, _DARK_MATTER)
    _set_attribute(files, none, "NumPart_ThisFile", "NumPart_Total", "NumPart_Total_HighWord")


def _without_groups(files: Sequence[Path]) -> None:
    for path in files:
        with h5py.File(path, "r+") as file:
            file["Group"].clear()
    _set_attribute(files, np.zeros_like, "Ngroups_ThisFile", "Ngroups_Total")


def _without_massive_halos(files: Sequence[Path]) -> None:
    largest = 0.9 * MASSIVE / MASS_UNIT
    for path in files:
        with h5py.File(path, "r+") as file:
            if "Group_M_Crit200" in file["Group"]:
                masses = file["Group/Group_M_Crit200"]
                radii = file["Group/Group_R_Crit200"]
                lighter = np.minimum(masses[()], np.float32(largest))
                radii[...] = radii[()] * np.cbrt(lighter / masses[()])
                masses[...] = lighter


def _wrong_time(files: Sequence[Path]) -> None:
    _set_attribute(files, lambda _: _WRONG_REDSHIFT, "Redshift")
    _set_attribute(files, lambda _: 1.0 / (1.0 + _WRONG_REDSHIFT), "Time")


def _heavier(files: Sequence[Path]) -> None:
    _set_attribute(files, _larger, "MassTable")
    for path in files:
        with h5py.File(path, "r+") as file:
            if f"{_DARK_MATTER}/Masses" in file:
                masses = file[f"{_DARK_MATTER}/Masses"]
                masses[...] = _larger(masses[()])


def _off(value: Any) -> Any:
    return value + _PARAMETER_ERROR


def _larger(value: Any) -> Any:
    return value * _WRONG_FACTOR


_FILE_EDITS: dict[Defect, Callable[[WrittenSimulation], None]] = {
    Defect.MISSING_DMO_SNAPSHOT: lambda s: _removed(*s.dmo),
    Defect.MISSING_HYDRO_SNAPSHOT: lambda s: _removed(*s.hydro),
    Defect.MISSING_CATALOGUE: lambda s: _removed(*s.catalogue),
    Defect.MISSING_FIRST_CHUNK: lambda s: _removed(_chunks(s, Defect.MISSING_FIRST_CHUNK, 2)[0]),
    Defect.MISSING_MIDDLE_CHUNK: lambda s: _removed(_chunks(s, Defect.MISSING_MIDDLE_CHUNK, 3)[1]),
    Defect.MISSING_LAST_CHUNK: lambda s: _removed(_chunks(s, Defect.MISSING_LAST_CHUNK, 2)[-1]),
    Defect.MISSING_CATALOGUE_CHUNK: _remove_catalogue_chunk,
    Defect.EXTRA_CHUNK: lambda s: _add_chunk(_chunks(s, Defect.EXTRA_CHUNK, 2)),
    Defect.AMBIGUOUS_SNAPSHOT: lambda s: _add_rival(s.dmo),
    Defect.WRONG_TOTAL_COUNT: lambda s: _set_attribute(s.hydro, _one_more(ParticleType.DARK_MATTER), "NumPart_Total"),
    Defect.WRONG_FILE_COUNT: lambda s: _set_attribute(
        s.dmo[:1], _one_more(ParticleType.DARK_MATTER), "NumPart_ThisFile"
    ),
    Defect.WRONG_NUMBER_OF_FILES: lambda s: _set_attribute(s.hydro, lambda n: n + 1, "NumFilesPerSnapshot"),
    Defect.TRUNCATED_FILE: lambda s: _cut_short(s.hydro[-1]),
    Defect.NOT_HDF5: lambda s: _overwrite(s.dmo[0]),
    Defect.MISSING_HEADER: lambda s: _delete(s.dmo[:1], "Header"),
    Defect.MISSING_COORDINATES: lambda s: _delete(s.dmo[-1:], f"{_DARK_MATTER}/Coordinates"),
    Defect.MISSING_GAS_MASSES: lambda s: _delete(s.hydro[:1], f"{_GAS}/Masses"),
    Defect.MISSING_HALO_MASSES: lambda s: _delete(s.catalogue, "Group/Group_M_Crit200"),
    Defect.NAN_POSITIONS: lambda s: _set_middle(
        s.dmo, f"{_DARK_MATTER}/Coordinates", lambda x, _: np.full_like(x, np.nan)
    ),
    Defect.INFINITE_POSITIONS: lambda s: _set_middle(
        s.hydro, f"{_GAS}/Coordinates", lambda x, _: np.full_like(x, np.inf)
    ),
    Defect.POSITIONS_OUT_OF_BOX: lambda s: _set_middle(
        s.hydro, f"{_DARK_MATTER}/Coordinates", lambda x, box: np.full_like(x, _OUTSIDE * box)
    ),
    Defect.POSITIONS_IN_MPC: lambda s: _positions_in_mpc(s.hydro),
    Defect.BOX_SIZE_IN_MPC: lambda s: _set_attribute(
        (*s.dmo, *s.hydro, *s.catalogue), lambda box: box / KPC_PER_MPC, "BoxSize"
    ),
    Defect.NEGATIVE_MASS: lambda s: _set_middle(s.hydro, f"{_GAS}/Masses", lambda mass, _: -mass),
    Defect.ZERO_MASS: lambda s: _set_middle(s.hydro, f"{_GAS}/Masses", lambda mass, _: 0.0 * mass),
    Defect.WRONG_PARTICLE_MASS: lambda s: _heavier(s.dmo),
    Defect.HYDRO_BOX_SIZE: lambda s: _set_attribute(s.hydro, _larger, "BoxSize"),
    Defect.CATALOGUE_BOX_SIZE: lambda s: _set_attribute(s.catalogue, _larger, "BoxSize"),
    Defect.HYDRO_OMEGA0: lambda s: _set_attribute(s.hydro, _off, "Omega0"),
    Defect.CATALOGUE_OMEGA0: lambda s: _set_attribute(s.catalogue, _off, "Omega0"),
    Defect.HYDRO_HUBBLE_PARAM: lambda s: _set_attribute(s.hydro, _off, "HubbleParam"),
    Defect.CATALOGUE_HUBBLE_PARAM: lambda s: _set_attribute(s.catalogue, _off, "HubbleParam"),
    Defect.HYDRO_REDSHIFT: lambda s: _wrong_time(s.hydro),
    Defect.CATALOGUE_REDSHIFT: lambda s: _wrong_time(s.catalogue),
    Defect.NO_HYDRO_DARK_MATTER: lambda s: _without_dark_matter(s.hydro),
    Defect.HALO_OUT_OF_BOX: lambda s: _set_first_halo(
        s.catalogue, "GroupPos", lambda x, box: np.full_like(x, _OUTSIDE * box)
    ),
    Defect.HALO_POSITION_NAN: lambda s: _set_first_halo(s.catalogue, "GroupPos", lambda x, _: np.full_like(x, np.nan)),
    Defect.HALO_MASS_NAN: lambda s: _set_first_halo(s.catalogue, "Group_M_Crit200", lambda mass, _: np.nan * mass),
    Defect.EMPTY_CATALOGUE: lambda s: _without_groups(s.catalogue),
    Defect.NO_MASSIVE_HALO: lambda s: _without_massive_halos(s.catalogue),
}
