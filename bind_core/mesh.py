"""Particles sorted into a chaining mesh: a grid of cubic cells that tiles the periodic box.

The cells let a projection touch only the particles that it needs, in the order in which they lie in memory.
The sort is stable, so its result is a function of the particles' order in the files alone. A parallel build
gives the same bytes for any number of ranks: each rank counts its own contiguous range of the files
(`cell_counts`), an exclusive scan over cells and ranks gives its first slot in every cell, and each rank fills
its slots (`scatter`).
"""

from dataclasses import dataclass

import numba
import numpy as np

#: Particles per cell that the default mesh aims at: enough to amortise the visit to a row of cells.
PARTICLES_PER_CELL = 100
#: Widest cell of the default mesh, Mpc/h. The projection pads its grids by the extent of a cell.
WIDEST_CELL = 1.6
#: The default mesh has at most this many cells per particle, or `FEWEST_CELLS`, to bound its memory.
CELLS_PER_PARTICLE = 4
FEWEST_CELLS = 32**3
#: Upper limit of the default mesh, which bounds the memory of the cell index (8 bytes per cell).
MOST_CELLS_PER_SIDE = 256


def cells_per_side_for(n_particles: int, box_size: float) -> int:
    """Return the default number of cells per side of a chaining mesh.

    Parameters
    ----------
    n_particles : int
        Particles in the whole box, over all ranks, so that the mesh does not depend on the number of ranks.
    box_size : float
        Mpc/h.
    """
    for_occupation = (n_particles / PARTICLES_PER_CELL) ** (1 / 3)
    for_width = box_size / WIDEST_CELL
    affordable = max(n_particles * CELLS_PER_PARTICLE, FEWEST_CELLS) ** (1 / 3) + 1e-9
    return max(1, int(min(max(for_occupation, for_width), affordable, MOST_CELLS_PER_SIDE)))


@dataclass(frozen=True)
class ParticleMesh:
    """Particles of one species, sorted stably into the cells of a chaining mesh.

    Parameters
    ----------
    positions : ndarray of shape (n, 3)
        float32, Mpc/h, in ``[0, box_size)``, in cell order: C order of (ix, iy, iz), then file order.
    masses : ndarray of shape (n,) or float
        float32, Msun/h; one float if all particles have the same mass.
    cell_starts : ndarray of shape (cells_per_side**3 + 1,)
        int64; the particles of cell ``i`` are ``cell_starts[i]`` to ``cell_starts[i + 1]``.
    cells_per_side : int
    box_size : float
        Mpc/h.
    """

    positions: np.ndarray
    masses: np.ndarray | float
    cell_starts: np.ndarray
    cells_per_side: int
    box_size: float

    @classmethod
    def build(
        cls,
        positions: np.ndarray,
        masses: np.ndarray | float,
        box_size: float,
        cells_per_side: int | None = None,
    ) -> "ParticleMesh":
        """Sort particles into a mesh.

        Parameters
        ----------
        positions : ndarray of shape (n, 3)
            float32 or float64, Mpc/h, in ``[0, box_size]`` in any order. What rounding moved onto or just
            across the box's edge is put back by one period.
        masses : ndarray of shape (n,) or float
            Msun/h.
        box_size : float
            Mpc/h.
        cells_per_side : int, optional
            Chosen by `cells_per_side_for` if not given. It affects speed, not maps.

        Raises
        ------
        ValueError
            If the shapes do not fit together or a position is not finite or outside of the box.
        """
        positions = np.asarray(positions)
        if positions.ndim != 2 or positions.shape[1] != 3:
            raise ValueError(f"positions must have the shape (n, 3), found {positions.shape}")
        n = len(positions)
        positions = np.ascontiguousarray(positions, dtype=np.float32)
        file_masses = None
        if np.ndim(masses) > 0:
            file_masses = np.ascontiguousarray(masses, dtype=np.float32)
            if file_masses.shape != (n,):
                raise ValueError(f"{n} positions need as many masses, found the shape {file_masses.shape}")
        cells = cells_per_side_for(n, box_size) if cells_per_side is None else int(cells_per_side)
        if cells < 1:
            raise ValueError(f"a chaining mesh needs at least one cell per side, found {cells}")

        counts = cell_counts(positions, box_size, cells)
        cell_starts = np.zeros(cells**3 + 1, dtype=np.int64)
        np.cumsum(counts, out=cell_starts[1:])
        sorted_positions = np.empty_like(positions)
        sorted_masses = None if file_masses is None else np.empty_like(file_masses)
        scatter(positions, file_masses, cell_starts[:-1].copy(), sorted_positions, sorted_masses, box_size, cells)
        return cls(
            positions=sorted_positions,
            masses=float(masses) if sorted_masses is None else sorted_masses,
            cell_starts=cell_starts,
            cells_per_side=cells,
            box_size=float(box_size),
        )

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def total_mass(self) -> float:
        """Mass of all particles, Msun/h, summed in float64."""
        if isinstance(self.masses, np.ndarray):
            return float(self.masses.sum(dtype=np.float64))
        return self.masses * len(self)


def cell_counts(positions: np.ndarray, box_size: float, cells_per_side: int) -> np.ndarray:
    """Count particles per cell.

    Parameters
    ----------
    positions : ndarray of shape (n, 3)
        float32 or float64, Mpc/h, in ``[0, box_size]`` up to rounding.
    box_size : float
        Mpc/h.
    cells_per_side : int

    Returns
    -------
    ndarray of shape (cells_per_side**3,)
        int64, C order of (ix, iy, iz).

    Raises
    ------
    ValueError
        If a position is not finite or lies more than rounding outside of the box; names the first one.
    """
    counts = np.zeros(cells_per_side**3, dtype=np.int64)
    bad = _count(positions, float(box_size), cells_per_side, counts)
    if bad >= 0:
        raise ValueError(
            f"position {bad} of {len(positions)} is {positions[bad]} Mpc/h, outside of the box "
            f"[0, {box_size}): are the units right (snapshots hold kpc/h), and is the file whole?"
        )
    return counts


def scatter(
    positions: np.ndarray,
    masses: np.ndarray | None,
    next_slot: np.ndarray,
    out_positions: np.ndarray,
    out_masses: np.ndarray | None,
    box_size: float,
    cells_per_side: int,
) -> None:
    """Copy particles into their cells' slots, keeping their order within each cell.

    Parameters
    ----------
    positions : ndarray of shape (n, 3)
        float32 or float64, Mpc/h; must have passed `cell_counts`.
    masses : ndarray of shape (n,) or None
        Msun/h; None if all particles have the same mass.
    next_slot : ndarray of shape (cells_per_side**3,)
        int64; index in the output of the next particle of each cell. Advanced in place.
    out_positions : ndarray of shape (m, 3)
        float32; receives positions in ``[0, box_size)``.
    out_masses : ndarray of shape (m,) or None
        float32; None where `masses` is None.
    box_size : float
        Mpc/h.
    cells_per_side : int
    """
    if masses is None or out_masses is None:
        none = np.empty(0, dtype=np.float32)
        _scatter(positions, none, False, next_slot, out_positions, none, float(box_size), cells_per_side)
    else:
        _scatter(positions, masses, True, next_slot, out_positions, out_masses, float(box_size), cells_per_side)


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _wrapped(x: float, box_size: float) -> np.float32:  # pragma: no cover - compiled
    """Put a coordinate that rounding moved across the box's edge back by one period, as float32."""
    y = np.float32(x)
    if y < 0:
        y = np.float32(y + box_size)
    if y >= box_size:
        y = max(np.float32(y - box_size), np.float32(0.0))
    return y


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _cell_along(x: np.float32, per_length: float, cells: int) -> int:  # pragma: no cover - compiled
    """Return the index of the cell that holds a coordinate in [0, box_size)."""
    return min(int(np.float64(x) * per_length), cells - 1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _count(
    positions: np.ndarray, box_size: float, cells: int, counts: np.ndarray
) -> int:  # pragma: no cover - compiled
    """Add the particles to `counts`; return the index of the first bad position, or -1."""
    per_length = cells / box_size
    slack = 1e-6 * box_size
    for i in range(positions.shape[0]):
        cell = 0
        for axis in range(3):
            x = positions[i, axis]
            # written so that a NaN fails it
            if not (x >= -slack and x <= box_size + slack):
                return i
            cell = cell * cells + _cell_along(_wrapped(x, box_size), per_length, cells)
        counts[cell] += 1
    return -1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scatter(
    positions: np.ndarray,
    masses: np.ndarray,
    has_masses: bool,
    next_slot: np.ndarray,
    out_positions: np.ndarray,
    out_masses: np.ndarray,
    box_size: float,
    cells: int,
) -> None:  # pragma: no cover - compiled
    per_length = cells / box_size
    for i in range(positions.shape[0]):
        x = _wrapped(positions[i, 0], box_size)
        y = _wrapped(positions[i, 1], box_size)
        z = _wrapped(positions[i, 2], box_size)
        cell = _cell_along(x, per_length, cells)
        cell = cell * cells + _cell_along(y, per_length, cells)
        cell = cell * cells + _cell_along(z, per_length, cells)
        slot = next_slot[cell]
        next_slot[cell] = slot + 1
        out_positions[slot, 0] = x
        out_positions[slot, 1] = y
        out_positions[slot, 2] = z
        if has_masses:
            out_masses[slot] = masses[i]
