"""The older generator, as plainly as it worked: nothing here is of this project."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401  (registers the Blosc filter)
import numpy as np
from numpy.typing import NDArray

WINDOW, BOX, REACH = 6.25, 50.0, 10.0
"""Mpc/h; periodic copies reach no farther than the last."""


def write_older_dataset(
    root: Path,
    dmo_base: Path,
    hydro_base: Path,
    catalogue_base: Path,
    simulations: Sequence[int],
    *,
    total_sims: int,
    rotations: int = 2,
    npix: int = 32,
    mass_threshold: float = 1e13,
    whole: bool = False,
) -> list[Path]:
    """Write the samples of some simulations.

    Parameters
    ----------
    root, dmo_base, hydro_base, catalogue_base : Path
        Where samples are written, and where the suite is.
    simulations : sequence of int
        Numbers of simulations.
    total_sims : int
        Number of simulations that are split.
    rotations, npix, mass_threshold
        Per halo, per side, and in Msun/h.
    whole : bool
        Make all periodic copies and leave the grid's edge open, as the older generator should have.
    """
    order = list(range(total_sims))
    random.Random(1993).shuffle(order)  # noqa: S311
    test = order[: int(0.1 * total_sims)]
    written = []
    for sim in simulations:
        folder = root / ("test" if sim in test else "train") / f"sim_{sim}"
        folder.mkdir(parents=True)
        dark_matter_only = particles(dmo_base / f"SB35_{sim}", 1)
        hydro = [particles(hydro_base / f"SB35_{sim}", kind) for kind in (1, 0, 4)]
        groups = list(halos(catalogue_base / f"SB35_{sim}"))
        massive = [(center, mass) for center, mass in groups if mass > mass_threshold]
        for halo, (center, mass) in enumerate(massive):
            for rotation in range(rotations):
                frame = drawn_frame(sim * 1000 + halo * 100 + rotation)
                maps = nested_maps(*dark_matter_only, center, frame, npix, whole)
                target = [nested_maps(*kind, center, frame, npix, whole)[0] for kind in hydro]
                path = folder / f"sim_{sim}_halo_{halo}_rot_{rotation}.npz"
                np.savez(
                    path,
                    condition=maps[0],
                    target=np.array(target, dtype=np.float32),
                    large_scale=maps[1:],
                    halo_mass=np.float32(mass),
                )
                written.append(path)
    return written


def drawn_frame(seed: int) -> NDArray[np.float64]:
    """Return the rotation of a seed: three Euler angles, about x, then y, then z."""
    a, b, c = np.random.RandomState(seed).uniform(0, 2 * np.pi, 3)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def nested_maps(
    positions: NDArray, masses: NDArray, center: NDArray, frame: NDArray, npix: int, whole: bool
) -> NDArray[np.float32]:
    """Return the maps of 6.25, 12.5, 25 and 50 Mpc/h, all cut out of one grid."""
    near = positions - center
    near -= BOX * np.round(near / BOX)
    copies, weights = [near], [masses]
    if whole:
        for shift in np.ndindex(3, 3, 3):
            if shift != (1, 1, 1):
                copies.append(near + BOX * (np.array(shift) - 1))
                weights.append(masses)
    else:
        for axis in range(3):
            for side in (-1, 1):
                close = near[:, axis] * side > BOX / 2 - REACH
                shift = np.zeros(3)
                shift[axis] = -side * BOX
                copies.append(near[close] + shift)
                weights.append(masses[close])
    rotated = np.concatenate(copies) @ frame.T
    mass = np.concatenate(weights)
    nodes = 8 * npix
    scaled = rotated[:, :2] * npix / WINDOW + nodes // 2
    inside = (scaled >= (-1 if whole else 0)).all(axis=1) & (scaled < nodes).all(axis=1)
    inside &= (rotated[:, 2] >= -BOX / 2) & (rotated[:, 2] < BOX / 2)
    scaled, mass = scaled[inside], mass[inside]
    grid = np.zeros((nodes, nodes))
    lower = np.floor(scaled).astype(int)
    upper = scaled - lower
    for i in (0, 1):
        for j in (0, 1):
            share = (upper[:, 0] if i else 1 - upper[:, 0]) * (upper[:, 1] if j else 1 - upper[:, 1])
            row, column = lower[:, 0] + i, lower[:, 1] + j
            kept = (row >= 0) & (row < nodes) & (column >= 0) & (column < nodes) if whole else np.full(len(row), True)
            np.add.at(grid, (row[kept] % nodes, column[kept] % nodes), (mass * share)[kept])
    maps = []
    for factor in (1, 2, 4, 8):
        margin = (nodes - factor * npix) // 2
        cut = grid[margin : nodes - margin, margin : nodes - margin]
        maps.append(cut.reshape(npix, factor, npix, factor).mean(axis=(1, 3)))
    return np.array(maps, dtype=np.float32)


def particles(folder: Path, kind: int) -> tuple[NDArray, NDArray]:
    """Return positions in Mpc/h and masses in Msun/h."""
    positions, masses = [np.empty((0, 3))], [np.empty(0)]
    for path in sorted(folder.rglob("*.hdf5")):
        with h5py.File(path) as file:
            group = file.get(f"PartType{kind}")
            if group is None or "Coordinates" not in group:
                continue
            positions.append(group["Coordinates"][:].astype(np.float64) / 1000)
            table = file["Header"].attrs["MassTable"][kind]
            own = group["Masses"][:] if "Masses" in group else np.full(len(positions[-1]), table)
            masses.append(own.astype(np.float64) * 1e10)
    return np.concatenate(positions), np.concatenate(masses)


def halos(folder: Path) -> Iterator[tuple[NDArray, float]]:
    """Yield centre in Mpc/h and M200c in Msun/h of all groups, in catalogue order."""
    for path in sorted(folder.rglob("*.hdf5"), key=lambda path: (len(path.name), path.name)):
        with h5py.File(path) as file:
            if "Group" in file and "GroupPos" in file["Group"]:
                masses = file["Group/Group_M_Crit200"][:].astype(np.float64) * 1e10
                yield from zip(file["Group/GroupPos"][:].astype(np.float64) / 1000, masses, strict=True)
