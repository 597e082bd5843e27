"""A mock universe written as a CAMELS suite: paired simulations, catalogues and a parameter table, from a seed.

`write_mock_suite` is what tests, demonstrations and benchmarks start from. A simulation's bytes depend on the seed,
its name and the options alone, so that a suite can grow, and be made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from bind_core.mock import MockCosmology, MockHalo, MockUniverse
from bind_core.suite import natural_order
from storage.files import write_bytes
from storage.mock_defects import PARTICLE_DEFECTS, Defect, WrittenSimulation, spoil_files, spoilt_rows
from storage.mock_formats import (
    VARIED_FORMATS,
    CatalogueLayout,
    Compression,
    MockFormat,
    SnapshotLayout,
    catalogue_files,
    snapshot_files,
    write_catalogue,
    write_dmo_snapshot,
    write_hydro_snapshot,
)

__all__ = [
    "CatalogueLayout",
    "Compression",
    "Defect",
    "MockFormat",
    "MockSuite",
    "SnapshotLayout",
    "write_mock_suite",
]

# Part of the record of each simulation: raise it when the same options give other bytes than before.
_GENERATION = 1
_BASES = ("DMO", "Hydro", "FOF")
# Where the records of what was written, and simulations half written, are kept below the suite's folder.
_RECORDS = ".mock"
# Columns of the parameter table with the range of each: those that shape the universe, then astrophysical ones that
# only stand in the table. The fifth of these has the spelling of the published tables.
_COSMOLOGY = {
    "Omega0": (0.2, 0.4),
    "sigma8": (0.7, 0.9),
    "OmegaBaryon": (0.04, 0.06),
    "HubbleParam": (0.6, 0.75),
    "n_s": (0.92, 1.0),
}
_ASTROPHYSICS = {
    "WindEnergyIn1e51erg": (0.9, 14.4),
    "RadioFeedbackFactor": (0.25, 4.0),
    "VariableWindVelFactor": (3.7, 14.8),
    "RadioFeedbackReiorientationFactor": (10.0, 40.0),
    "MaxSfrTimescale": (1.135, 4.54),
    "IMFslope": (-2.8, -1.8),
    "SeedBlackHoleMass": (2.5e-5, 2.5e-4),
    "BlackHoleFeedbackFactor": (0.025, 0.4),
    "QuasarThreshold": (6.3e-5, 0.063),
}
_NAME_COLUMN, _SEED_COLUMN = "#Name", "seed"
_SIGNIFICANT_DIGITS = 5
_LARGEST_SEED = 1_000_000
# Rows for simulations that do not exist, for each that does.
_ABSENT_PER_PRESENT = 1
# Independent random streams of one simulation.
_STREAM_PARAMETERS, _STREAM_UNIVERSE, _STREAM_OTHER_UNIVERSE = range(3)


@dataclass(frozen=True)
class MockSuite:
    """Where a mock suite was written, and what is known about it.

    Parameters
    ----------
    dmo_base, hydro_base, catalogue_base : Path
        Folders that hold a folder for each simulation.
    parameter_file : Path
        The parameter table.
    names : tuple of str
        The simulations that were asked for, in that order.
    halos : mapping of str to tuple of MockHalo
        By simulation, the haloes in the order of its catalogue (by falling friends-of-friends mass), as they were
        before any defect.
    """

    dmo_base: Path
    hydro_base: Path
    catalogue_base: Path
    parameter_file: Path
    names: tuple[str, ...]
    halos: Mapping[str, tuple[MockHalo, ...]]


def write_mock_suite(
    root: Path,
    *,
    simulations: int | Sequence[str] = 3,
    particles_per_side: int = 64,
    seed: int = 1993,
    box_size: float = 50.0,
    set_name: str = "SB35",
    snapshot_number: int = 90,
    formats: Sequence[MockFormat] | None = None,
    halos_per_simulation: int = 6,
    defects: Mapping[str, Sequence[Defect]] | None = None,
    wind: bool = False,
    black_holes: bool = False,
    progress: Callable[[str], None] | None = None,
) -> MockSuite:
    """Write paired mock simulations in CAMELS layout, or add some to those already there.

    Below `root` there will be `DMO/<name>/`, `Hydro/<name>/`, `FOF/<name>/` and `CosmoAstroSeed_<set>.txt`. A
    simulation's files appear when they are complete; one that is there already, written with the same options and not
    touched since, is left alone; with other options, it is replaced.

    Parameters
    ----------
    root : Path
        Folder to write into.
    simulations : int or sequence of str
        How many (`<set>_0`, `<set>_1`, ...), or which.
    particles_per_side : int
        Particles of each species along a side; up to 512 in bounded memory.
    seed : int
        Together with a simulation's name, decides its parameters, phases and haloes.
    box_size : float
        Side of the box, Mpc/h.
    set_name : str
        Prefix of numbered simulations, and part of the parameter table's name.
    snapshot_number : int
        Number in the names of the files.
    formats : sequence of MockFormat, optional
        Cycled over `simulations`. By default a mix that has every variant; which of it a simulation gets then depends
        on its name only.
    halos_per_simulation : int
        Haloes with M200c above 1e13 Msun/h in each simulation; twice as many are lighter.
    defects : mapping of str to sequence of Defect, optional
        By simulation name, what is to be wrong with it.
    wind, black_holes : bool
        Whether some of PartType4 is in the wind phase, and whether massive haloes have a black hole (PartType5).
    progress : callable, optional
        Called with a line of text after each simulation.

    Returns
    -------
    MockSuite
        Paths, names and known haloes.

    Raises
    ------
    TypeError
        If `simulations` is a single string.
    ValueError
        If a name is no name for a folder, a defect is asked for a simulation that is not asked for or needs another
        layout, or the box cannot hold the haloes.
    """
    names = _names(simulations, set_name)
    requested = {name: tuple(Defect(defect) for defect in found) for name, found in (defects or {}).items()}
    strangers = sorted(set(requested) - set(names))
    if strangers:
        raise ValueError(f"defects are asked for {strangers}, which are not among the simulations {list(names)}")
    halos = {}
    for position, name in enumerate(names):
        recipe = {
            "generation": _GENERATION,
            "seed": int(seed),
            "particles_per_side": int(particles_per_side),
            "box_size": float(box_size),
            "snapshot_number": int(snapshot_number),
            "halos_per_simulation": int(halos_per_simulation),
            "format": asdict(_chosen_format(formats, position, name)),
            "defects": list(requested.get(name, ())),
            "wind": bool(wind),
            "black_holes": bool(black_holes),
        }
        record = _intact_record(root, name, recipe)
        state = "already there"
        if record is None:
            record = _write_simulation(root, name, recipe)
            state = "written"
        halos[name] = tuple(_halo_from(halo) for halo in record["halos"])
        if progress is not None:
            progress(f"{name}: {state} ({position + 1} of {len(names)})")
    parameter_file = root / f"CosmoAstroSeed_{set_name}.txt"
    _write_parameter_table(parameter_file, root, set_name, int(seed))
    dmo_base, hydro_base, catalogue_base = (root / base for base in _BASES)
    return MockSuite(dmo_base, hydro_base, catalogue_base, parameter_file, names, halos)


def _names(simulations: int | Sequence[str], set_name: str) -> tuple[str, ...]:
    if not _is_name(set_name):
        raise ValueError(f"{set_name!r} cannot be the name of a set of simulations; expected one such as SB35")
    if isinstance(simulations, int):
        return tuple(f"{set_name}_{number}" for number in range(simulations))
    if isinstance(simulations, str):
        raise TypeError(f"simulations is a number or a sequence of names, got the one string {simulations!r}")
    for name in simulations:
        if not _is_name(name):
            raise ValueError(f"{name!r} cannot be the name of a simulation's folder; expected one such as {set_name}_0")
    return tuple(simulations)


def _is_name(name: str) -> bool:
    """Whether a folder can be called that: it is one step down, and no other way from where it begins."""
    return bool(name) and not name.startswith(".") and Path(name).name == name and "\0" not in name


def _chosen_format(formats: Sequence[MockFormat] | None, position: int, name: str) -> MockFormat:
    if formats:
        return formats[position % len(formats)]
    suffix = name.rpartition("_")[2]
    number = int(suffix) if suffix.isdecimal() else _digest(name)
    return VARIED_FORMATS[number % len(VARIED_FORMATS)]


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _parameter_row(seed: int, name: str) -> dict[str, str]:
    """Parameters of a simulation, rounded to what the table shows, so that headers can agree with it exactly."""
    rng = np.random.default_rng([seed, _digest(name), _STREAM_PARAMETERS])
    row = {_NAME_COLUMN: name}
    for column, (low, high) in {**_COSMOLOGY, **_ASTROPHYSICS}.items():
        row[column] = f"{rng.uniform(low, high):.{_SIGNIFICANT_DIGITS}g}"
    row[_SEED_COLUMN] = str(rng.integers(_LARGEST_SEED))
    return row


def _write_simulation(root: Path, name: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """Write a simulation aside, spoil it as asked, put it in place, and record it."""
    seed, digest = recipe["seed"], _digest(name)
    form = _format_from(recipe["format"])
    defects = [Defect(defect) for defect in recipe["defects"]]
    row = _parameter_row(seed, name)
    cosmology = MockCosmology(
        omega_matter=float(row["Omega0"]),
        omega_baryon=float(row["OmegaBaryon"]),
        hubble=float(row["HubbleParam"]),
        sigma8=float(row["sigma8"]),
        spectral_index=float(row["n_s"]),
    )

    def universe(stream: int) -> MockUniverse:
        return MockUniverse(
            cosmology,
            box_size=recipe["box_size"],
            particles_per_side=recipe["particles_per_side"],
            seed=[seed, digest, stream],
            massive_halos=recipe["halos_per_simulation"],
            stars=Defect.NO_STARS not in defects,
            wind=recipe["wind"],
            black_holes=recipe["black_holes"],
        )

    number = recipe["snapshot_number"]
    aside = root / _RECORDS / "unfinished" / name
    _remove_folder(aside)
    folders = {base: aside / base for base in _BASES}
    for folder in folders.values():
        folder.mkdir(parents=True)
    simulation = WrittenSimulation(
        dmo=snapshot_files(folders["DMO"], form.dmo_layout, number, form.chunks),
        hydro=snapshot_files(folders["Hydro"], form.hydro_layout, number, form.chunks),
        catalogue=catalogue_files(folders["FOF"], form.catalogue_layout, number, form.chunks),
        rows=(row,),
    )
    paired = universe(_STREAM_UNIVERSE)
    write_dmo_snapshot(simulation.dmo, paired, form)
    write_catalogue(simulation.catalogue, paired, form)
    twin = universe(_STREAM_OTHER_UNIVERSE) if Defect.MISPAIRED in defects else paired
    write_hydro_snapshot(simulation.hydro, twin, form)
    rows = simulation.rows
    for defect in defects:
        if defect not in PARTICLE_DEFECTS:
            spoil_files(simulation, defect)
            rows = spoilt_rows(rows, defect)

    _record_path(root, name).unlink(missing_ok=True)  # what it records is about to go
    for base, folder in folders.items():
        final = root / base / name
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_folder(final)
        folder.rename(final)
    _remove_folder(aside)
    record = {
        "recipe": recipe,
        "rows": list(rows),
        "halos": [asdict(halo) for halo in paired.halos],
        "files": _fingerprints(root, name),
    }
    write_bytes(_record_path(root, name), f"{json.dumps(record, indent=1)}\n".encode())
    return record


def _remove_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _record_path(root: Path, name: str) -> Path:
    return root / _RECORDS / f"{name}.json"


def _intact_record(root: Path, name: str, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Return a simulation's record, if it was written by this recipe and no file of it has changed since."""
    try:
        record = json.loads(_record_path(root, name).read_text())
    except FileNotFoundError:
        return None
    unchanged = record["recipe"] == recipe and record["files"] == _fingerprints(root, name)
    return record if unchanged else None


def _fingerprints(root: Path, name: str) -> dict[str, list[int]]:
    """Size and time of change of each file of a simulation, by its path below the root."""
    found = {}
    for base in _BASES:
        for path in sorted((root / base / name).rglob("*.hdf5")):
            status = path.stat()
            found[path.relative_to(root).as_posix()] = [status.st_size, status.st_mtime_ns]
    return found


def _format_from(values: dict[str, Any]) -> MockFormat:
    return MockFormat(
        dmo_layout=SnapshotLayout(values["dmo_layout"]),
        hydro_layout=SnapshotLayout(values["hydro_layout"]),
        catalogue_layout=CatalogueLayout(values["catalogue_layout"]),
        dmo_compression=Compression(values["dmo_compression"]),
        hydro_compression=Compression(values["hydro_compression"]),
        chunks=values["chunks"],
        count_bits=values["count_bits"],
        mass_style=values["mass_style"],
        cosmology_group=values["cosmology_group"],
    )


def _halo_from(values: dict[str, Any]) -> MockHalo:
    return MockHalo(
        position=tuple(values["position"]),
        m200c=values["m200c"],
        r200c=values["r200c"],
        fof_mass=values["fof_mass"],
        site=tuple(values["site"]),
    )


def _write_parameter_table(path: Path, root: Path, set_name: str, seed: int) -> None:
    """Write the rows of all recorded simulations, then those of as many that do not exist, as in published tables."""
    records = {file.stem: json.loads(file.read_text()) for file in (root / _RECORDS).glob("*.json")}
    rows = [row for name in sorted(records, key=natural_order) for row in records[name]["rows"]]
    numbers = [int(name.rpartition("_")[2]) for name in records if name.rpartition("_")[2].isdecimal()]
    absent = (f"{set_name}_{number}" for number in count(max(numbers, default=-1) + 1))
    rows += [_parameter_row(seed, next(absent)) for _ in range(1 + _ABSENT_PER_PRESENT * len(records))]
    lines = [" ".join([_NAME_COLUMN, *_COSMOLOGY, *_ASTROPHYSICS, _SEED_COLUMN])]
    lines += ["  " + " ".join(row.values()) for row in rows]
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
