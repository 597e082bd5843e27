"""Halo catalogues and the haloes that a data set takes from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from bind_core.config import Stratum
from bind_core.errors import CatalogueError
from bind_core.snapshot import KPC_PER_MPC, MASS_UNIT, attribute, header_attributes, open_hdf5
from bind_core.stored_data import member, require_stored

_MASS, _RADIUS, _POSITION = "Group_M_Crit200", "Group_R_Crit200", "GroupPos"
_MAX_GROUPS = 1 << 31


@dataclass(frozen=True)
class CatalogueHeader:
    """What one file of a catalogue says of itself; None where the attribute is absent."""

    groups_this_file: int
    groups_total: int
    number_of_files: int
    box_size: float | None
    """Mpc/h."""
    redshift: float | None
    omega0: float | None
    hubble: float | None


@dataclass(frozen=True)
class HaloCatalogue:
    """All groups of a simulation, in catalogue order over all chunks."""

    headers: tuple[CatalogueHeader, ...]
    """One for each file."""
    centers: NDArray[np.float64]
    """(n, 3): Mpc/h."""
    masses: NDArray[np.float64]
    """(n,): M200c in Msun/h."""
    radii: NDArray[np.float64]
    """(n,): R200c in Mpc/h."""


@dataclass(frozen=True)
class Halo:
    """One halo of a stratum."""

    index: int
    """Index in the catalogue; it does not change with any threshold."""
    ordinal: int
    """Position among the haloes of the stratum, in catalogue order."""
    center: tuple[float, float, float]
    """Mpc/h, box frame."""
    mass: float
    """M200c in Msun/h."""
    radius: float
    """R200c in Mpc/h."""


def read_catalogue(files: Sequence[Path]) -> HaloCatalogue:
    """Read the positions, masses and radii of all groups of a catalogue.

    Parameters
    ----------
    files : sequence of Path
        The catalogue's files in chunk order. A file without groups need not have any ``Group`` dataset.

    Returns
    -------
    HaloCatalogue
        Whether the counts add up is for `bind_core.validation` to say.

    Raises
    ------
    CatalogueError
        If there is no file, a file is damaged, or a dataset is missing or has another shape than its header says.
    """
    if not files:
        raise CatalogueError("Reading a halo catalogue: there are no files. Give at least one.")
    parts = [_read_file(path) for path in files]
    return HaloCatalogue(
        headers=tuple(header for part in parts for header in part.headers),
        centers=np.concatenate([part.centers for part in parts]),
        masses=np.concatenate([part.masses for part in parts]),
        radii=np.concatenate([part.radii for part in parts]),
    )


def _read_file(path: Path) -> HaloCatalogue:
    with open_hdf5(path, CatalogueError) as file:
        header = _read_header(file, path)
        count = header.groups_this_file
        if not count:
            return HaloCatalogue((header,), np.empty((0, 3)), np.empty(0), np.empty(0))
        return HaloCatalogue(
            headers=(header,),
            centers=_read(file, path, _POSITION, (count, 3)) / KPC_PER_MPC,
            masses=_read(file, path, _MASS, (count,)) * MASS_UNIT,
            radii=_read(file, path, _RADIUS, (count,)) / KPC_PER_MPC,
        )


def read_catalogue_header(path: Path) -> CatalogueHeader:
    """Read what one file of a catalogue says of itself.

    Raises
    ------
    CatalogueError
        If the file is damaged, or an attribute is missing or no number.
    """
    with open_hdf5(path, CatalogueError) as file:
        return _read_header(file, path)


def halos_in(catalogue: HaloCatalogue, stratum: Stratum) -> list[Halo]:
    """Return the haloes whose M200c lies in a stratum, in catalogue order."""
    inside = (catalogue.masses > stratum.min_mass) & (catalogue.masses <= stratum.upper_mass)
    return [
        Halo(
            index=int(index),
            ordinal=ordinal,
            center=(
                float(catalogue.centers[index, 0]),
                float(catalogue.centers[index, 1]),
                float(catalogue.centers[index, 2]),
            ),
            mass=float(catalogue.masses[index]),
            radius=float(catalogue.radii[index]),
        )
        for ordinal, index in enumerate(np.flatnonzero(inside))
    ]


def _read_header(file: h5py.File, path: Path) -> CatalogueHeader:
    header = header_attributes(file)

    def number(name: str) -> float | None:
        value = attribute(header, name)
        if value is None:
            return None
        if value.dtype.kind not in "fiu" or value.size == 0 or (value.size > 1 and np.unique(value).size > 1):
            raise CatalogueError(
                f"{path}: Header attribute {name} should be one number, found {value.tolist()}. The file is damaged: "
                "fetch it again."
            )
        return float(value.reshape(-1)[0])

    def count(*names: str) -> int:
        for name in names:
            value = number(name)
            if value is not None:
                if not 0 <= value < _MAX_GROUPS:
                    raise CatalogueError(
                        f"{path}: Header attribute {name} is {value:g}; expected a count below {_MAX_GROUPS}. "
                        "The file is damaged: fetch it again."
                    )
                return int(value)
        raise CatalogueError(
            f"{path}: the Header has no attribute {' or '.join(names)}. Expected a friends-of-friends / Subfind "
            "catalogue; check that the catalogue base path does not point at snapshots."
        )

    box_size = number("BoxSize")
    return CatalogueHeader(
        groups_this_file=count("Ngroups_ThisFile"),
        groups_total=count("Ngroups_Total"),
        number_of_files=count("NumFiles", "NumFilesPerSnapshot"),
        box_size=None if box_size is None else box_size / KPC_PER_MPC,
        redshift=number("Redshift"),
        omega0=number("Omega0"),
        hubble=number("HubbleParam"),
    )


def _read(file: h5py.File, path: Path, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    dataset = member(file, f"Group/{name}")
    if not isinstance(dataset, h5py.Dataset):
        raise CatalogueError(
            f"{path}: the dataset Group/{name} is missing, though the Header counts {shape[0]} groups. "
            "The file is incomplete: fetch it again."
        )
    if dataset.shape != shape or dataset.dtype.kind not in "fiu":
        raise CatalogueError(
            f"{path}: the dataset Group/{name} should be numbers of shape {shape}, as the Header counts, but it is "
            f"{dataset.dtype} of shape {dataset.shape}. The file is damaged: fetch it again."
        )
    require_stored(dataset, positions=name == _POSITION)
    return np.asarray(dataset[...], dtype=np.float64)
