"""Projection of particles onto the maps of a sample, by interchangeable backends.

All backends take particles in a chaining mesh, a halo and a rotation, and share one geometry (see
`bind_core.windows`): every periodic image that falls inside the rotated windows counts, a particle is shared
between the native nodes floor(u) and floor(u) + 1 of each axis (cloud in cell), and a window is open: a node on
its edge also collects from particles just outside of it.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bind_core.backends import Backend
from bind_core.errors import ProjectionError
from bind_core.kernels import MOMENTS, deposit_window, grid_from_moments
from bind_core.mesh import ParticleMesh
from bind_core.windows import Windows, block_mean, block_sum, central_crop

#: How far ``rotation @ rotation.T`` may be from the identity.
ORTHONORMALITY_TOLERANCE = 1e-6


def project_native(
    particles: ParticleMesh,
    center: np.ndarray,
    rotation: np.ndarray,
    windows: Windows,
    backend: Backend | str = Backend.FUSED,
) -> np.ndarray:
    """Project particles onto the native window alone, as the targets need it.

    Parameters
    ----------
    particles : ParticleMesh
    center : ndarray of shape (3,)
        The halo, Mpc/h, box frame. It lands on node ``(resolution / 2, resolution / 2)``.
    rotation : ndarray of shape (3, 3)
        Box frame -> projected frame, ``x' = rotation @ (x - center)``; the line of sight is z'.
    windows : Windows
    backend : Backend or str

    Returns
    -------
    ndarray of shape (resolution, resolution)
        float64, Msun/h per native pixel; axis 0 runs along x', axis 1 along y'.

    Raises
    ------
    ValueError
        If the centre or the rotation is not usable.
    ProjectionError
        If the backend is not installed or fails its own checks.
    """
    return project_all(particles, center, rotation, windows.native_only, backend)[0]


def project_all(
    particles: ParticleMesh,
    center: np.ndarray,
    rotation: np.ndarray,
    windows: Windows,
    backend: Backend | str = Backend.FUSED,
) -> np.ndarray:
    """Project particles onto the native window and every context window.

    Parameters
    ----------
    particles, center, rotation, windows, backend
        As for `project_native`.

    Returns
    -------
    ndarray of shape (1 + number of context windows, resolution, resolution)
        float64, Msun/h per native pixel: the native window, then the context windows (block means of native
        pixels) in ascending size.

    Raises
    ------
    ValueError, ProjectionError
        As for `project_native`.
    """
    center = np.asarray(center, dtype=np.float64)
    rotation = np.asarray(rotation, dtype=np.float64)
    if center.shape != (3,) or not np.isfinite(center).all():
        raise ValueError(f"center must be three finite coordinates in Mpc/h, found {center!r}")
    if rotation.shape != (3, 3) or not np.allclose(
        rotation @ rotation.T, np.eye(3), rtol=0, atol=ORTHONORMALITY_TOLERANCE
    ):
        raise ValueError(f"rotation must be an orthonormal 3 x 3 matrix, found {rotation!r}")
    # Which period the halo's coordinates are given in must not matter, not even to rounding
    center = np.mod(center, particles.box_size)
    return _BACKENDS[Backend(backend)](particles, center, np.ascontiguousarray(rotation), windows)


def largest_deviation(maps: np.ndarray, expected: np.ndarray) -> float:
    """Return how far two stacks of maps are apart, in the measure that all backends are held to.

    Parameters
    ----------
    maps, expected : ndarray of shape (n_maps, n, n)
        Non-negative.

    Returns
    -------
    float
        Largest ``|maps - expected|`` in units of ``max(expected, mean of that expected map)``; infinite where a
        map should be empty and is not.
    """
    difference = np.abs(np.asarray(maps) - expected)
    scale = np.maximum(expected, np.mean(expected, axis=(-2, -1), keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(difference == 0, 0.0, difference / scale)
    return float(relative.max())


# --------------------------------------------------------------------------------------------------- geometry


def _widest_half(windows: Windows) -> float:
    """Return the half-width, Mpc/h, beyond which no particle contributes to any window."""
    return windows.sizes[-1] / 2 + windows.pixel_size


def _images(
    center: np.ndarray, rotation: np.ndarray, windows: Windows, box_size: float
) -> Iterator[tuple[int, int, int]]:
    """Yield the periodic images of the box that the rotated windows can touch, in C order."""
    half = np.array([_widest_half(windows), _widest_half(windows), windows.depth / 2])
    reach = half @ np.abs(rotation)
    first = np.floor((center - reach) / box_size - 1e-9).astype(int)
    last = np.floor((center + reach) / box_size + 1e-9).astype(int)
    # A box whose centre lies farther from a face of the windows than its own half diagonal misses them
    box_reach = half + box_size / 2 * np.abs(rotation).sum(axis=1) * (1 + 1e-9)
    for image in np.ndindex(*(last - first + 1)):
        number = first + image
        box_center = rotation @ ((number + 0.5) * box_size - center)
        if (np.abs(box_center) <= box_reach).all():
            yield int(number[0]), int(number[1]), int(number[2])


def _particles_in_windows(
    particles: ParticleMesh, center: np.ndarray, rotation: np.ndarray, windows: Windows, chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield native coordinates (u, v) and masses of all images in the widest window, in bounded batches.

    Coordinates are float64, in native pixels from the lower edge of the widest window; masses are float64.
    A batch holds what falls inside out of `chunk` particles of one image.
    """
    native_nodes = windows.resolution * (windows.factors[-1] if windows.factors else 1)
    half_depth = windows.depth / 2
    images = list(_images(center, rotation, windows, particles.box_size))
    for start in range(0, len(particles), chunk):
        positions = particles.positions[start : start + chunk].astype(np.float64) - center
        masses = (
            particles.masses[start : start + chunk].astype(np.float64)
            if isinstance(particles.masses, np.ndarray)
            else np.full(len(positions), particles.masses, dtype=np.float64)
        )
        for image in images:
            x, y, z = (positions + np.multiply(image, particles.box_size)).T
            # Spelled out: the compiled kernels evaluate the same sum in the same order
            depth = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z
            u = rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z
            v = rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z
            u = u / windows.pixel_size + native_nodes // 2
            v = v / windows.pixel_size + native_nodes // 2
            inside = (depth >= -half_depth) & (depth < half_depth)
            inside &= (u > -1) & (u < native_nodes) & (v > -1) & (v < native_nodes)
            if inside.any():
                yield u[inside], v[inside], masses[inside]


def _maps_from_native_grid(native_grid: np.ndarray, windows: Windows) -> np.ndarray:
    """Cut and average the widest window's native grid into the stack of maps."""
    maps = [central_crop(native_grid, windows.resolution)]
    maps += [block_mean(central_crop(native_grid, factor * windows.resolution), factor) for factor in windows.factors]
    return np.stack(maps)


# -------------------------------------------------------------------------------------------------- reference

#: Particles that the numpy backends hold at a time, per image.
REFERENCE_CHUNK = 1 << 18


def _project_reference(
    particles: ParticleMesh, center: np.ndarray, rotation: np.ndarray, windows: Windows
) -> np.ndarray:
    nodes = windows.resolution * (windows.factors[-1] if windows.factors else 1)
    # One node more on either side collects what falls outside; coordinates shift by one
    padded = nodes + 2
    grid = np.zeros(padded * padded)
    for u, v, mass in _particles_in_windows(particles, center, rotation, windows, REFERENCE_CHUNK):
        i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
        du, dv = u - i, v - j
        for step_i, weight_i in ((0, 1 - du), (1, du)):
            for step_j, weight_j in ((0, 1 - dv), (1, dv)):
                node = (i + step_i + 1) * padded + (j + step_j + 1)
                grid += np.bincount(node, mass * weight_i * weight_j, minlength=grid.size)
    return _maps_from_native_grid(grid.reshape(padded, padded)[1:-1, 1:-1], windows)


# ------------------------------------------------------------------------------------------------------ fused

#: Widest margin of the nested grids, native pixels; wider cells are sorted into levels particle by particle.
WIDEST_MARGIN = 256
#: Margin then: one pixel for CIC's reach, one for its upper node, one for rounding.
NARROWEST_MARGIN = 3


#: Single precision moves a particle by at most about 2e-4 native pixels, of a block as long as the box; where a
#: pixel holds `FEWEST_PER_PIXEL` particles in the mean, that is below a third of the accuracy that is promised.
FEWEST_PER_PIXEL = 8
#: Expected number from which on it is worth trying.
DENSE = 4 * FEWEST_PER_PIXEL
#: Pixels from edge to halo; single precision counts 2^24 pixels exactly.
LARGEST_SINGLE_GRID = 2**11


def _project_fused(particles: ParticleMesh, center: np.ndarray, rotation: np.ndarray, windows: Windows) -> np.ndarray:
    factors = (1, *windows.factors)
    # The coarsest pixel from which this level's and all wider windows' pixels can be summed up
    block_sizes = [math.gcd(*factors[k:]) for k in range(len(factors))]
    coarsest = block_sizes[-1]

    cell_size = particles.box_size / particles.cells_per_side
    cell_extent = cell_size * np.abs(rotation[:2]).sum(axis=1).max()
    margin = NARROWEST_MARGIN + math.ceil(cell_extent * (1 + 1e-5) / windows.pixel_size)
    by_particle = margin > WIDEST_MARGIN
    if by_particle:
        margin = NARROWEST_MARGIN
    # In native pixels, and whole in every level's, so that each padded grid sums up into the next
    half_sizes = [-(-(factor * windows.resolution // 2 + margin) // coarsest) * coarsest for factor in factors]
    half_grids = np.array(half_sizes) // block_sizes
    grid_starts = np.concatenate([[0], np.cumsum((2 * half_grids) ** 2)])

    weighted = isinstance(particles.masses, np.ndarray)
    single = (_expected_per_pixel(particles, windows) >= DENSE) & (not weighted)
    single &= half_grids < LARGEST_SINGLE_GRID
    while True:
        grids = np.zeros(grid_starts[-1])
        moments = np.zeros(MOMENTS * grid_starts[-1], dtype=np.int64)
        deposit_window(
            particles.positions.reshape(-1),
            particles.masses if isinstance(particles.masses, np.ndarray) else np.empty(0, dtype=np.float32),
            weighted,
            particles.cell_starts,
            particles.cells_per_side,
            particles.box_size,
            center,
            rotation,
            windows.depth / 2,
            np.array(windows.sizes) / 2 + windows.pixel_size,
            windows.pixel_size,
            np.array(block_sizes),
            half_grids,
            grid_starts,
            grids,
            moments,
            single,
            by_particle,
        )
        for k in np.flatnonzero(single):
            start, stop = grid_starts[k], grid_starts[k + 1]
            grids[start:stop] = grid_from_moments(moments[MOMENTS * start : MOMENTS * stop], 2 * half_grids[k])
        maps = _maps_from_nested_grids(grids, grid_starts, half_grids, block_sizes, windows)
        # Denser by expectation than in truth: the bound must hold for these particles, so do without
        means = maps.mean(axis=(1, 2)) * np.square(factors)
        if not (single & (means < FEWEST_PER_PIXEL)).any():
            break
        single[:] = False
    if not isinstance(particles.masses, np.ndarray):
        maps *= particles.masses
    return maps


def _expected_per_pixel(particles: ParticleMesh, windows: Windows) -> np.ndarray:
    """Return how many particles a pixel of each window would hold if the box were uniform."""
    pixel_areas = np.square(np.array(windows.sizes) / windows.resolution)
    return len(particles) / particles.box_size**3 * windows.depth * pixel_areas


def _maps_from_nested_grids(
    grids: np.ndarray,
    grid_starts: np.ndarray,
    half_grids: np.ndarray,
    block_sizes: list[int],
    windows: Windows,
) -> np.ndarray:
    """Sum the grids up from the narrowest to the widest, and cut each window's map out of its sum."""
    factors = (1, *windows.factors)
    maps = np.empty((len(factors), windows.resolution, windows.resolution))
    narrower = None
    for k, factor in enumerate(factors):
        side = 2 * half_grids[k]
        grid = grids[grid_starts[k] : grid_starts[k + 1]].reshape(side, side)
        if narrower is not None:
            summed = block_sum(narrower, block_sizes[k] // block_sizes[k - 1])
            edge = (side - len(summed)) // 2
            grid[edge : side - edge, edge : side - edge] += summed
        pixels = block_sum(central_crop(grid, windows.resolution * factor // block_sizes[k]), factor // block_sizes[k])
        maps[k] = pixels / factor**2
        narrower = grid
    return maps


# ---------------------------------------------------------------------------------------------------- pylians

#: Native nodes per side of a tile: float32 coordinates below 16 are good to 5e-7 of a pixel.
TILE_NODES = 8
#: Particles between the same four nodes in one call: float32 sums stay good to 1e-6.
PARTICLES_PER_SUM = 32
#: Nodes around a tile, so that nothing wraps around the edge of its grid.
TILE_MARGIN = 1


def _mas_library() -> Any:
    try:
        import MAS_library
    except ImportError as error:
        raise ProjectionError(
            "the backend 'pylians' needs the Pylians library, which is compiled from source: run "
            "`make pylians`, or choose the backend 'fused'"
        ) from error
    return MAS_library


def _project_pylians(particles: ParticleMesh, center: np.ndarray, rotation: np.ndarray, windows: Windows) -> np.ndarray:
    assign = _mas_library().MA
    nodes = windows.resolution * (windows.factors[-1] if windows.factors else 1)
    grid = np.zeros((nodes + 2, nodes + 2))
    for u, v, mass in _particles_in_windows(particles, center, rotation, windows, REFERENCE_CHUNK):
        _add_with_pylians(assign, grid, u + 1, v + 1, mass)
    return _maps_from_native_grid(grid[1:-1, 1:-1], windows)


def _add_with_pylians(
    assign: Callable[..., None], grid: np.ndarray, u: np.ndarray, v: np.ndarray, mass: np.ndarray
) -> None:
    """Add particles to a grid, in tiles small enough that single precision does no harm.

    Parameters
    ----------
    assign : callable
        ``MAS_library.MA``.
    grid : ndarray of shape (n, n)
        float64; added to.
    u, v : ndarray of shape (m,)
        Coordinates in pixels, >= 0 and < n - 1.
    mass : ndarray of shape (m,)
        Numbers of a field may be negative.
    """
    unit = np.abs(mass).mean()
    if unit == 0:
        return
    pixel = np.floor(u).astype(np.int64) * len(grid) + np.floor(v).astype(np.int64)
    order = np.argsort(pixel, kind="stable")
    pixel, u, v, mass = pixel[order], u[order], v[order], mass[order] / unit
    first_of_pixel = np.flatnonzero(np.diff(pixel, prepend=-1))
    number_in_pixel = np.arange(len(pixel)) - np.repeat(first_of_pixel, np.diff(first_of_pixel, append=len(pixel)))
    batch = number_in_pixel // PARTICLES_PER_SUM
    tile_u, tile_v = (np.floor(x).astype(np.int64) // TILE_NODES for x in (u, v))
    order = np.lexsort((batch, tile_v, tile_u))
    u, v, mass, tile_u, tile_v, batch = (a[order] for a in (u, v, mass, tile_u, tile_v, batch))
    call_starts = np.flatnonzero(np.diff(tile_u, prepend=-1) | np.diff(tile_v, prepend=-1) | np.diff(batch, prepend=-1))
    coordinates = np.stack(
        [u - tile_u * TILE_NODES + TILE_MARGIN, v - tile_v * TILE_NODES + TILE_MARGIN], axis=1
    ).astype(np.float32)
    weights = mass.astype(np.float32)
    side = TILE_NODES + 2 * TILE_MARGIN + 1
    for start, end in zip(call_starts, np.append(call_starts[1:], len(u)), strict=True):
        tile = _assign_checked(assign, coordinates[start:end], weights[start:end], side)
        # The margin's lower row stays empty; the upper node of the last particle is the row after the tile
        a, b = int(tile_u[start]) * TILE_NODES, int(tile_v[start]) * TILE_NODES
        part = tile[TILE_MARGIN:, TILE_MARGIN:]
        target = grid[a : a + len(part), b : b + len(part)]
        target += unit * part[: target.shape[0], : target.shape[1]]


def _assign_checked(assign: Callable[..., None], coordinates: np.ndarray, weights: np.ndarray, side: int) -> np.ndarray:
    """Call ``MAS_library.MA`` on a small grid and make sure that it did what it was asked to.

    It fails in silence otherwise: float64 input leaves zeros, coordinates outside the grid are written
    outside the array.

    Returns
    -------
    ndarray of shape (side, side)
        float64.

    Raises
    ------
    ProjectionError
        If the input is not what the library handles, or the mass is not conserved.
    """
    if coordinates.dtype != np.float32 or weights.dtype != np.float32:
        raise ProjectionError(
            f"Pylians takes float32 only, found coordinates of {coordinates.dtype} and masses of {weights.dtype}"
        )
    # written so that a NaN fails it
    if not (coordinates.min() >= 0 and coordinates.max() < side - 1):
        raise ProjectionError(
            f"coordinates must lie in [0, {side - 1}) of a tile of {side} nodes, found "
            f"{coordinates.min()} to {coordinates.max()}"
        )
    field = np.zeros((side, side), dtype=np.float32)
    assign(coordinates, field, np.float32(side), MAS="CIC", W=weights, verbose=False, renormalize_2D=False)
    # In two dimensions every particle is added once per half of a third axis that does not exist
    tile = 0.5 * field.astype(np.float64)
    expected = weights.sum(dtype=np.float64)
    if not abs(tile.sum() - expected) <= 1e-4 * np.abs(weights).sum(dtype=np.float64):
        raise ProjectionError(f"Pylians put {tile.sum()} of the mass {expected} onto the grid: is it the version 0.12?")
    return tile


_BACKENDS: dict[Backend, Callable[[ParticleMesh, np.ndarray, np.ndarray, Windows], np.ndarray]] = {
    Backend.FUSED: _project_fused,
    Backend.PYLIANS: _project_pylians,
    Backend.REFERENCE: _project_reference,
}
