"""A sample on disk: one ``.npz`` that holds the seven arrays of the contract, and the names of further channels."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray

from bind_core.errors import BindDataError
from bind_core.sample import CHANNELS_KEY, TARGET_CHANNELS, Sample
from storage.archives import ArchiveError, decode_arrays, encode_arrays
from storage.files import write_bytes

_PIXEL = "Msun/h per native pixel"


@dataclass(frozen=True)
class ArrayContract:
    """What an array of a sample must be."""

    dtype: type
    shape: tuple[int | str, ...]
    """Extents given as text may be any number, but the same wherever they appear."""
    description: str
    """What it holds, for the data card."""
    unit: str = ""


CONTRACT: dict[str, ArrayContract] = {
    "condition": ArrayContract(
        np.float32, ("npix", "npix"), "Dark matter of the dark-matter-only run, in the native window.", _PIXEL
    ),
    "target": ArrayContract(
        np.float32,
        ("n_target", "npix", "npix"),
        "Dark matter, gas and stars of the hydrodynamic run, in the native window.",
        _PIXEL,
    ),
    "large_scale": ArrayContract(
        np.float32,
        ("n_context", "npix", "npix"),
        "Dark matter of the dark-matter-only run in the wider windows, in ascending size: means over native pixels.",
        _PIXEL,
    ),
    "params": ArrayContract(
        np.float64, ("n_params",), "The simulation's parameters, in the order of the suite's parameter table."
    ),
    "halo_mass": ArrayContract(np.float64, (), "M200c of the halo.", "Msun/h"),
    "halo_center": ArrayContract(np.float64, (3,), "Centre of the halo in the box frame.", "Mpc/h"),
    "rotation": ArrayContract(np.float64, (3, 3), "Rotation from the box frame to the projected frame."),
}
"""The arrays by name, in order."""

_ROTATION_TOLERANCE = 1e-9


class SampleError(BindDataError):
    """A sample that does not keep to the contract, or whose file cannot be read."""


@dataclass(frozen=True)
class SampleFile:
    """What was written for one sample."""

    path: Path
    bytes: int
    """Size of the file."""
    sha256: str
    """Of the whole file, as 64 hexadecimal digits."""


def encode_sample(sample: Sample, where: str = "the sample") -> bytes:
    """Return the content of a sample's file; the same bytes for the same arrays.

    Parameters
    ----------
    sample : Sample
        The arrays.
    where : str
        Which sample it is, for error messages.

    Raises
    ------
    SampleError
        If a shape, a map's values or the rotation do not keep to the contract.
    """
    arrays = sample.arrays()
    _check(arrays, where)
    return encode_arrays(arrays)


def write_sample(path: Path, sample: Sample) -> SampleFile:
    """Write a sample atomically.

    Parameters
    ----------
    path : Path
        The file to make or replace; missing folders are made.
    sample : Sample
        The arrays.

    Returns
    -------
    SampleFile
        Size and digest, computed from the bytes in memory.

    Raises
    ------
    SampleError
        If the sample does not keep to the contract.
    StorageFullError
        If the disk or the quota is full.
    """
    content = encode_sample(sample, str(path))
    write_bytes(path, content)
    return SampleFile(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def decode_sample(content: bytes, path: Path) -> Sample:
    """Return the sample that a file's bytes hold.

    Parameters
    ----------
    content : bytes
        The whole file.
    path : Path
        Where it came from, for error messages.

    Raises
    ------
    SampleError
        If it is no ``.npz``, is damaged, or does not keep to the contract. Arrays that the contract does not
        know are ignored.
    """
    try:
        arrays = decode_arrays(content, path)
    except ArchiveError as error:
        raise SampleError(str(error)) from error
    _check(arrays, str(path))
    return Sample.from_arrays(arrays)


def read_sample(path: Path) -> Sample:
    """Read a sample.

    Raises
    ------
    SampleError
        If the file is missing or unreadable, is no ``.npz``, is damaged, or does not keep to the contract.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SampleError(
            f"Cannot read the sample {path}: {error.strerror or error}. If the manifest lists it, make it again."
        ) from error
    return decode_sample(content, path)


def target_channels(arrays: Mapping[str, NDArray]) -> tuple[str, ...] | None:
    """Return what the channels of a sample's target are called; None where what it says cannot be."""
    if CHANNELS_KEY not in arrays:
        return TARGET_CHANNELS
    found = arrays[CHANNELS_KEY]
    if found.ndim != 1 or found.dtype.kind != "U":
        return None
    names = tuple(found.tolist())
    known = names[: len(TARGET_CHANNELS)] == TARGET_CHANNELS and len(set(names)) == len(names)
    return names if known and all(names) else None


def mass_maps(arrays: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """Return the arrays whose pixels are masses, by name: all maps but those of further fields."""
    return {
        "condition": arrays["condition"],
        "target": arrays["target"][: len(TARGET_CHANNELS)],
        "large_scale": arrays["large_scale"],
    }


def _check(arrays: dict[str, NDArray], where: str) -> None:
    channels = target_channels(arrays)
    if channels is None:
        found = arrays[CHANNELS_KEY]
        raise SampleError(
            f"{where}: {CHANNELS_KEY!r} should hold {', '.join(TARGET_CHANNELS)} and names of further channels, each "
            f"once, found {found.dtype} of shape {found.shape}: {shorten(str(found.tolist()), 200, placeholder=' …')}."
        )
    extents: dict[str, int] = {"n_target": len(channels)}
    for key, contract in CONTRACT.items():
        dtype, shape = contract.dtype, contract.shape
        if key not in arrays:
            raise SampleError(
                f"{where}: there is no array {key!r}; expected {', '.join(CONTRACT)}, found "
                f"{', '.join(arrays) or 'none'}."
            )
        found = arrays[key]
        if found.dtype != dtype:
            raise SampleError(f"{where}: {key!r} has dtype {found.dtype}; expected {np.dtype(dtype)}.")
        expected = shape
        if found.ndim == len(shape):
            for name, extent in zip(shape, found.shape, strict=True):
                if isinstance(name, str):
                    extents.setdefault(name, extent)
            expected = tuple(extents[name] if isinstance(name, str) else name for name in shape)
        if found.shape != expected:
            raise SampleError(
                f"{where}: {key!r} has shape {found.shape}; expected ({', '.join(map(str, expected))})"
                f"{', the same npix in all maps' if 'npix' in shape else ''}."
            )
        if not np.isfinite(found).all():
            bad = int(np.size(found) - np.isfinite(found).sum())
            raise SampleError(f"{where}: {key!r} holds {bad} values that are not finite; expected none.")
    for key, masses in mass_maps(arrays).items():
        if masses.size and masses.min() < 0:
            raise SampleError(f"{where}: {key!r} holds the negative mass {masses.min()}; expected 0 or more.")
    rotation = arrays["rotation"]
    deviation = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if deviation > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        raise SampleError(
            f"{where}: 'rotation' is no rotation: its rows deviate from orthonormal by {deviation:.3g} and its "
            f"determinant is {np.linalg.det(rotation):.6g}; expected at most {_ROTATION_TOLERANCE:g} and 1."
        )
