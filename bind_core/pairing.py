"""Tell whether a dark-matter-only and a hydrodynamic run belong together.

No header can tell. Their dark-matter fields can: from the same initial phases, they correlate almost perfectly on
a coarse mesh; from different phases, not at all.
"""

import numba
import numpy as np
from numpy.typing import NDArray

MESH_SIDE = 16
"""Cells per side of the coarse mesh; smaller for fewer than 32^3 particles."""

_LEAST_SIDE = 2
_PARTICLES_PER_CELL = 8


def coarse_mesh_side(particles: int) -> int:
    """Return the cells per side, a power of two, on which a particle set's field is compared.

    There are at least eight particles a cell, or two cells a side.
    """
    side = MESH_SIDE
    while side > _LEAST_SIDE and _PARTICLES_PER_CELL * side**3 > particles:
        side //= 2
    return side


def empty_coarse_mesh(side: int) -> NDArray[np.float64]:
    """Return a mesh of zeros that `add_to_coarse_mesh` fills."""
    return np.zeros((side, side, side))


@numba.njit(cache=True, nogil=True)
def add_to_coarse_mesh(mesh, positions, box_size):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Share each position out to the eight nearest cells of a periodic mesh (CIC), in place.

    Parameters
    ----------
    mesh : (side, side, side) float64 array
        Changed in place.
    positions : (n, 3) float32 array
        Mpc/h, in [0, box_size).
    box_size : float
        Mpc/h.
    """
    side = mesh.shape[0]
    scale = side / box_size
    for i in range(positions.shape[0]):
        x = positions[i, 0] * scale
        y = positions[i, 1] * scale
        z = positions[i, 2] * scale
        ix, iy, iz = int(x), int(y), int(z)
        fx, fy, fz = x - ix, y - iy, z - iz
        ix, iy, iz = ix % side, iy % side, iz % side
        jx, jy, jz = (ix + 1) % side, (iy + 1) % side, (iz + 1) % side
        mesh[ix, iy, iz] += (1 - fx) * (1 - fy) * (1 - fz)
        mesh[ix, iy, jz] += (1 - fx) * (1 - fy) * fz
        mesh[ix, jy, iz] += (1 - fx) * fy * (1 - fz)
        mesh[ix, jy, jz] += (1 - fx) * fy * fz
        mesh[jx, iy, iz] += fx * (1 - fy) * (1 - fz)
        mesh[jx, iy, jz] += fx * (1 - fy) * fz
        mesh[jx, jy, iz] += fx * fy * (1 - fz)
        mesh[jx, jy, jz] += fx * fy * fz


def coarsened(mesh: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return the mesh that the same particles would have given with fewer cells per side.

    It is exact: the CIC kernel of twice the width is the sum of three narrow ones, weighted 1/2, 1 and 1/2.

    Parameters
    ----------
    mesh : (n, n, n) float64 array
        What `add_to_coarse_mesh` filled.
    side : int
        Cells per side of the result: n divided by a power of two.
    """
    while len(mesh) > side:
        for axis in range(3):
            wide = mesh + 0.5 * (np.roll(mesh, 1, axis) + np.roll(mesh, -1, axis))
            mesh = np.take(wide, np.arange(0, mesh.shape[axis], 2), axis)
    return mesh


def mesh_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the Pearson correlation of two meshes; 1 if both are uniform, 0 if only one is."""
    a = (first - first.mean()).ravel()
    b = (second - second.mean()).ravel()
    # Sums over many particles: below this spread, a uniform field is only rounded.
    flat_a = np.max(np.abs(a)) <= 1e-6 * abs(first.mean())
    flat_b = np.max(np.abs(b)) <= 1e-6 * abs(second.mean())
    if flat_a or flat_b:
        return 1.0 if flat_a and flat_b else 0.0
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))
