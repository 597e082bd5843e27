"""The plain way to make samples, from the field's standard parts, to measure ours against.

Minimum image by numpy, copies of all that lies within 10 Mpc/h of each face, a rotation, a crop, Pylians' `MASL.MA` on
the full native grid for each of the four species, block means, `numpy.savez_compressed`.
"""

from pathlib import Path

import MAS_library
import numpy as np
from numpy.typing import NDArray

from bind_core.snapshot import KPC_PER_MPC, MASS_UNIT, open_hdf5, read_header
from bind_core.windows import Windows

FACE_MARGIN = 10.0
"""Mpc/h."""

Species = tuple[NDArray[np.floating], NDArray[np.float32]]


def read_species(files: tuple[Path, ...], particle_type: int) -> Species:
    """Return all positions in Mpc/h and masses in Msun/h of a particle type, whole arrays at once."""
    positions, masses = [], []
    for path in files:
        header = read_header(path)
        with open_hdf5(path) as file:
            group = file.get(f"PartType{particle_type}")
            if group is None or "Coordinates" not in group:
                continue
            positions.append(group["Coordinates"][:] / KPC_PER_MPC)
            if "Masses" in group:
                masses.append(group["Masses"][:] * MASS_UNIT)
            else:
                masses.append(np.full(len(positions[-1]), header.mass_table[particle_type]))
    if not positions:
        return np.empty((0, 3)), np.empty(0, np.float32)
    return np.concatenate(positions), np.concatenate(masses).astype(np.float32)


def full_map(
    species: Species, center: NDArray[np.float64], rotation: NDArray[np.float64], box_size: float, windows: Windows
) -> NDArray[np.float32]:
    """Return the species' projected mass on the native grid of the widest window."""
    positions, masses = species
    centred = positions - center
    centred -= box_size * np.round(centred / box_size)
    all_positions, all_masses = [centred], [masses]
    for axis in range(3):
        for sign in (1, -1):
            near_face = sign * centred[:, axis] > box_size / 2 - FACE_MARGIN
            copies = centred[near_face].copy()
            copies[:, axis] -= sign * box_size
            all_positions.append(copies)
            all_masses.append(masses[near_face])
    rotated = np.vstack(all_positions) @ rotation.T
    tiled_masses = np.concatenate(all_masses)
    width = windows.sizes[-1]
    shifted = rotated + width / 2
    inside = np.all((shifted >= 0) & (shifted < width), axis=1)
    nodes = windows.factors[-1] * windows.resolution
    field = np.zeros((nodes, nodes), dtype=np.float32)
    flat = np.ascontiguousarray(shifted[inside][:, :2], dtype=np.float32)
    MAS_library.MA(flat, field, np.float32(width), MAS="CIC", W=tiled_masses[inside], verbose=False)
    return field


def make_sample(
    species: dict[str, Species],
    center: NDArray[np.float64],
    rotation: NDArray[np.float64],
    box_size: float,
    windows: Windows,
    path: Path,
) -> None:
    """Make one sample of the four species ``dmo``, ``dark_matter``, ``gas`` and ``stars``, and write it."""
    maps = {name: full_map(particles, center, rotation, box_size, windows) for name, particles in species.items()}
    npix = windows.resolution
    middle = windows.factors[-1] * npix // 2

    def window(field: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
        half = factor * npix // 2
        cut = field[middle - half : middle + half, middle - half : middle + half]
        return cut.reshape(npix, factor, npix, factor).mean(axis=(1, 3))

    np.savez_compressed(
        path,
        condition=window(maps["dmo"], 1),
        large_scale=np.stack([window(maps["dmo"], factor) for factor in windows.factors]),
        target=np.stack([window(maps[name], 1) for name in ("dark_matter", "gas", "stars")]),
    )
