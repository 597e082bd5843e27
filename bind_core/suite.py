"""Which simulations exist, and where their files are."""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError

_SNAPSHOT_STEMS = ("snap", "snapshot")
_CATALOGUE_STEMS = ("fof_subhalo_tab", "groups")
_SIMULATION_ID = r"[A-Za-z0-9][A-Za-z0-9+\-]*(?:_[A-Za-z0-9+\-]+)*"


class Role(StrEnum):
    """What a set of input files is in a simulation."""

    DMO = "dmo"
    """The snapshot of the dark-matter-only run."""
    HYDRO = "hydro"
    """The snapshot of the hydrodynamic run."""
    CATALOGUE = "catalogue"
    """The halo catalogue of the dark-matter-only run."""


@dataclass(frozen=True)
class InputFiles:
    """The files of one role, as found."""

    role: Role
    folder: Path
    """Where they were looked for."""
    files: tuple[Path, ...]
    """In chunk order; empty if there are none."""
    chunks: tuple[int, ...] | None
    """The chunk number of each file, or None for a single unnumbered file."""
    expected: tuple[str, ...]
    """The names that were looked for, relative to the folder."""
    rivals: tuple[Path, ...] = ()
    """First files of other candidates with other content; not empty only where the choice is ambiguous."""


@dataclass(frozen=True)
class SimulationFiles:
    """A simulation and the files of its three roles."""

    name: str
    """For example ``SB35_0`` or ``1P_p1_n2``."""
    number: int | None
    """The number in a name such as ``SB35_17``; None where the rest of the name is no number."""
    dmo: InputFiles
    hydro: InputFiles
    catalogue: InputFiles

    def roles(self) -> tuple[InputFiles, InputFiles, InputFiles]:
        """Return the files of the three roles."""
        return (self.dmo, self.hydro, self.catalogue)


def simulation_id(name: str, set_name: str) -> str:
    """Return a simulation's name without the prefix of its set: ``SB35_0`` is ``0``.

    Raises
    ------
    ConfigurationError
        If the name does not belong to the set, or holds characters that a path should not.
    """
    match = re.fullmatch(re.escape(set_name) + "_(" + _SIMULATION_ID + ")", name)
    if match is None:
        raise ConfigurationError(
            f"{name!r} is not the name of a simulation of set {set_name}: expected {set_name}_<id>, with letters, "
            f"digits, '+', '-' and '_' in the id, such as {set_name}_0. Check the name and the setting set_name."
        )
    return match.group(1)


def simulation_number(name: str, set_name: str) -> int | None:
    """Return the number in a simulation's name, or None where it has none."""
    identifier = simulation_id(name, set_name)
    return int(identifier) if identifier.isdecimal() else None


def natural_order(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a sort key that puts ``SB35_2`` before ``SB35_10``."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts)


def discover_simulations(config: DatasetConfig) -> list[str]:
    """Return the names of all simulations of the set that have a folder under any of the three base paths.

    A simulation that has some of its parts only is listed too, so that validation can say what it lacks.

    Returns
    -------
    list of str
        In natural order.

    Raises
    ------
    ConfigurationError
        If a base path is no readable folder.
    """
    names: set[str] = set()
    for setting in ("dmo_base", "hydro_base", "catalogue_base"):
        base: Path = getattr(config, setting)
        try:
            names.update(_simulation_names(base, config.set_name))
        except OSError as error:
            raise ConfigurationError(
                f"{setting}: cannot list the folder {base}: {error.strerror or error}. It must be the folder that "
                f"holds {config.set_name}_0, {config.set_name}_1, …"
            ) from error
    return sorted(names, key=natural_order)


def find_simulation(name: str, config: DatasetConfig) -> SimulationFiles:
    """Find the files of a simulation in every known layout.

    Parameters
    ----------
    name : str
        Name of the simulation, with its set's prefix.
    config : DatasetConfig
        Gives the base paths, the set and the snapshot number.

    Returns
    -------
    SimulationFiles
        Roles without files have an empty tuple; nothing is opened.

    Raises
    ------
    ConfigurationError
        If the name does not belong to the set.
    """
    number = simulation_number(name, config.set_name)
    snapshot = f"{config.snapshot_number:03d}"
    return SimulationFiles(
        name=name,
        number=number,
        dmo=_find(Role.DMO, _folder(config.dmo_base, name, config.set_name), snapshot),
        hydro=_find(Role.HYDRO, _folder(config.hydro_base, name, config.set_name), snapshot),
        catalogue=_find(Role.CATALOGUE, _folder(config.catalogue_base, name, config.set_name), snapshot),
    )


def _simulation_names(base: Path, set_name: str) -> Iterator[str]:
    folders = [base]
    if (base / set_name).is_dir():
        folders.append(base / set_name)
    pattern = re.compile(re.escape(set_name) + "_" + _SIMULATION_ID)
    for folder in folders:
        for entry in folder.iterdir():
            if pattern.fullmatch(entry.name) and entry.is_dir():
                yield entry.name


def _folder(base: Path, name: str, set_name: str) -> Path:
    """Return the simulation's folder: in the base path, or in the set's folder below it."""
    nested = base / set_name / name
    direct_is_there, nested_is_there = os.path.isdir(base / name), os.path.isdir(nested)  # noqa: PTH112
    return nested if nested_is_there and not direct_is_there else base / name


def _find(role: Role, folder: Path, snapshot: str) -> InputFiles:
    if role is Role.CATALOGUE:
        stems, subfolder = _CATALOGUE_STEMS, f"groups_{snapshot}"
    else:
        stems, subfolder = _SNAPSHOT_STEMS, f"snapdir_{snapshot}"
    expected: list[str] = []
    candidates: list[tuple[tuple[Path, ...], tuple[int, ...] | None]] = []
    for stem in stems:
        single = folder / f"{stem}_{snapshot}.hdf5"
        expected.append(single.name)
        if os.path.isfile(single):  # noqa: PTH113  (unlike Path.is_file, False where the folder is not accessible)
            candidates.append(((single,), None))
        expected.append(f"{subfolder}/{stem}_{snapshot}.<n>.hdf5")
        candidates.extend(_numbered_files(folder / subfolder, f"{stem}_{snapshot}"))
    files, chunks = candidates[0] if candidates else ((), None)
    rivals = tuple(other[0] for other, _ in candidates[1:] if not _same_files(other, files))
    return InputFiles(role, folder, files, chunks, tuple(expected), rivals)


def _numbered_files(folder: Path, stem: str) -> list[tuple[tuple[Path, ...], tuple[int, ...]]]:
    """Return the files ``<stem>.<n>.hdf5`` of a folder with their numbers, in the numbers' order.

    There is more than one such series where a number is there twice, as 1 and as 01.
    """
    pattern = re.compile(re.escape(stem) + r"\.([0-9]{1,9})\.hdf5")
    try:
        names = sorted(os.listdir(folder), key=len)  # noqa: PTH208
    except OSError:
        return []
    series: list[dict[int, Path]] = []
    for name in names:
        match = pattern.fullmatch(name)
        if match is None or not os.path.isfile(folder / name):  # noqa: PTH113
            continue
        number = int(match.group(1))
        free = next((files for files in series if number not in files), None)
        if free is None:
            series.append(free := {})
        free[number] = folder / name
    return [(tuple(files[number] for number in sorted(files)), tuple(sorted(files))) for files in series]


def _same_files(first: Iterable[Path], second: Iterable[Path]) -> bool:
    return [path.resolve() for path in first] == [path.resolve() for path in second]
