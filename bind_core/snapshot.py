"""Snapshots: their files, their headers and what they hold, in Mpc/h and Msun/h."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers the Blosc filter, without which the public N-body files are unreadable)
import numpy as np
from numpy.typing import NDArray

from bind_core.errors import BindDataError, SnapshotError
from bind_core.stored_data import StoredDataError, member, require_short
from bind_core.suite import Role

KPC_PER_MPC = 1000.0
"""The files' unit of length is ckpc/h; ours is Mpc/h."""
MASS_UNIT = 1e10
"""The files' unit of mass in Msun/h."""


class ParticleType(IntEnum):
    """The particle types that are used, by their number in the files."""

    GAS = 0
    DARK_MATTER = 1
    STARS = 4
    BLACK_HOLES = 5


class Component(StrEnum):
    """A particle set that is projected as one."""

    DMO = "dmo"
    """Dark matter of the dark-matter-only run."""
    DARK_MATTER = "dark_matter"
    """Dark matter of the hydrodynamic run."""
    GAS = "gas"
    """Gas of the hydrodynamic run."""
    STARS = "stars"
    """Stars of the hydrodynamic run, by the star and black-hole policies."""

    @property
    def role(self) -> Role:
        """The snapshot that holds it."""
        return Role.DMO if self is Component.DMO else Role.HYDRO


@dataclass(frozen=True)
class SnapshotHeader:
    """What one file of a snapshot says of itself."""

    box_size: float
    """Mpc/h."""
    mass_table: tuple[float, ...]
    """Msun/h by particle type; 0 where particles have masses of their own."""
    counts_this_file: tuple[int, ...]
    counts_total: tuple[int, ...]
    number_of_files: int
    redshift: float
    omega0: float
    hubble: float
    omega_baryon: float | None
    """None where the file does not say."""


@contextmanager
def open_hdf5(path: Path, error_type: type[Exception] = SnapshotError) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading, and raise `error_type` if it cannot be opened or turns out to be damaged."""
    try:
        file = h5py.File(path, "r")
    except Exception as error:
        raise error_type(
            f"{path}: cannot be opened as HDF5: {reason_of(error)}. The file is missing, incomplete or damaged: fetch "
            "it again."
        ) from error
    with file:
        try:
            yield file
        except BindDataError:
            raise
        except StoredDataError as error:
            raise error_type(f"{path}: {error}.") from error
        except Exception as error:  # damage in the file surfaces in h5py as almost any exception
            raise error_type(
                f"{path}: cannot be read: {reason_of(error)}. The file is damaged: fetch it again."
            ) from error


def reason_of(error: Exception) -> str:
    """Return what an error of the HDF5 library says, as part of a sentence."""
    return f"{type(error).__name__}: {error}".rstrip(".").replace("\n", " ").replace(". ", ", ")


Attributes = tuple[h5py.AttributeManager, ...]


def header_attributes(file: h5py.File) -> Attributes:
    """Return the attributes of the groups that codes write a header to, of those that are there."""
    groups = (member(file, name) for name in ("Header", "Parameters", "Cosmology"))
    return tuple(group.attrs for group in groups if group is not None)


def attribute(header: Attributes, name: str) -> NDArray | None:
    """Return a header attribute as an array, from the first group that has it; else None."""
    for attributes in header:
        if name in attributes:
            require_short(attributes, name)
            return np.atleast_1d(np.asarray(attributes[name]))
    return None


def read_header(path: Path) -> SnapshotHeader:
    """Read the header of one file of a snapshot.

    Raises
    ------
    SnapshotError
        If the file is no HDF5 file, or an attribute is missing or no number.
    """
    with open_hdf5(path) as file:
        if "Header" not in file:
            raise SnapshotError(
                f"{path}: has no group Header; expected a snapshot, found groups {', '.join(file) or '(none)'}. "
                "Check that the base paths point at snapshots."
            )

        header = header_attributes(file)

        def numbers(name: str) -> NDArray:
            value = attribute(header, name)
            if value is not None:
                return _checked_numbers(path, name, value)
            raise SnapshotError(
                f"{path}: the attribute {name} is in none of the groups Header, Parameters and Cosmology. "
                "The header is incomplete: fetch the file again."
            )

        def number(name: str) -> float:
            value = numbers(name)
            if np.any(value != value[0]):
                raise SnapshotError(
                    f"{path}: Header attribute {name} should be one number, found {value.tolist()}. The header is "
                    "damaged: fetch the file again."
                )
            return float(value[0])

        this_file = _counts(path, "NumPart_ThisFile", numbers("NumPart_ThisFile"))
        totals = _totals(path, numbers("NumPart_Total"), attribute(header, "NumPart_Total_HighWord"))
        omega_baryon = attribute(header, "OmegaBaryon")
        return SnapshotHeader(
            box_size=_box_size(path, numbers("BoxSize")),
            mass_table=_masses(path, numbers("MassTable")),
            counts_this_file=this_file,
            counts_total=_counts(path, "NumPart_Total", totals),
            number_of_files=int(number("NumFilesPerSnapshot")),
            redshift=number("Redshift"),
            omega0=number("Omega0"),
            hubble=number("HubbleParam"),
            omega_baryon=(
                None if omega_baryon is None else float(_checked_numbers(path, "OmegaBaryon", omega_baryon)[0])
            ),
        )


def _checked_numbers(path: Path, name: str, value: NDArray) -> NDArray:
    numbers = value
    if value.dtype.kind == "f":
        with np.errstate(over="ignore"):  # of those that no double-precision number is large enough for
            numbers = value.astype(np.float64)
    if value.dtype.kind not in "fiu" or value.size == 0 or not np.all(np.isfinite(numbers)):
        raise SnapshotError(
            f"{path}: Header attribute {name} should be a finite number, found {value.tolist()}. The header is "
            "damaged: fetch the file again."
        )
    return numbers.reshape(-1)


def _totals(path: Path, low: NDArray, high: NDArray | None) -> NDArray:
    """Join the two 32-bit halves of total counts; 64-bit totals are whole by themselves."""
    if high is None or low.dtype.itemsize > 4 or low.dtype.kind == "f":
        return low
    high = _checked_numbers(path, "NumPart_Total_HighWord", high)
    if high.shape != low.shape or np.any(high < 0):
        raise SnapshotError(
            f"{path}: Header attribute NumPart_Total_HighWord should be {len(low)} non-negative counts, as "
            f"NumPart_Total has, found {high.tolist()}. The header is damaged: fetch the file again."
        )
    # Some codes write the lower halves as signed integers: their bits are the same.
    lower = low.astype(np.int64) & 0xFFFFFFFF
    return lower.astype(np.uint64) + (high.astype(np.uint64) << np.uint64(32))


def _counts(path: Path, name: str, values: NDArray) -> tuple[int, ...]:
    if len(values) <= ParticleType.BLACK_HOLES or np.any(values < 0):
        raise SnapshotError(
            f"{path}: Header attribute {name} should be a non-negative count for each of at least "
            f"{ParticleType.BLACK_HOLES + 1} particle types, found {values.tolist()}."
        )
    return tuple(int(value) for value in values)


def _masses(path: Path, values: NDArray) -> tuple[float, ...]:
    with np.errstate(over="ignore"):
        masses = values.astype(np.float64) * MASS_UNIT
    if not np.all(np.isfinite(masses)):
        raise SnapshotError(
            f"{path}: Header attribute MassTable should hold masses in 1e10 Msun/h, found {values.tolist()}. The "
            "header is damaged: fetch the file again."
        )
    return tuple(masses.tolist())


def _box_size(path: Path, values: NDArray) -> float:
    size = float(values[0]) / KPC_PER_MPC
    if np.any(values != values[0]) or not 0 < size < float(np.finfo(np.float32).max):
        raise SnapshotError(
            f"{path}: Header attribute BoxSize should be one positive size (a cubic box) in ckpc/h, found "
            f"{values.tolist()}. The header is damaged: fetch the file again."
        )
    return size
