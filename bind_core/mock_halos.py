"""Where the haloes of a mock universe are, how massive they are, and how matter is spread within them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bind_core.content import CRITICAL_DENSITY
from bind_core.mock_field import Floats, LinearField, MockCosmology

OVERDENSITY = 200.0
"""Mean density within R200c, in units of the critical density."""

MASSIVE = 1e13
"""Least M200c (Msun/h) of what a mock universe calls a massive halo."""

# Haloes form at peaks of the linear density, smoothed on this scale (Mpc/h); their sites are sought among so many
# nodes a side, after displacements smoothed as the particles' are (Mpc/h).
_PEAK_SMOOTHING = 3.0
_SITE_NODES = 32

# Halo masses: dN/dM ~ M^slope (Msun/h), and no halo above this fraction of the box's mass.
_MASS_SLOPE = -1.9
_MASSIVE_RANGE = (1.05e13, 3e14)
_FAINT_RANGE = (1e12, 9.5e12)
_LARGEST_MASS_FRACTION = 0.05
_FAINT_PER_MASSIVE = 2
_FAINT_WITHOUT_MASSIVE = 6
# Friends-of-friends mass over M200c.
_FOF_EXCESS = (1.1, 1.4)
# A halo on the box's boundary sits within this many R200c of it.
_BOUNDARY_OFFSET = 0.5
# Haloes keep at least this many summed R200c apart.
_SEPARATION = 2.0
# Lengths of the second and third axis of a halo, in those of its first.
_AXIS_RATIOS = ((0.8, 1.0), (0.6, 0.8))

# NFW concentration at the pivot mass, and its slope: Duffy et al. (2008), rounded.
_CONCENTRATION = 6.0
_CONCENTRATION_PIVOT = 1e13
_CONCENTRATION_SLOPE = -0.09

_PROFILE_POINTS = 2048
_INNERMOST_RADIUS = 1e-4  # R200c

Profile = Callable[[Floats], Floats]
"""Radius in R200c that encloses a share (0 to 1) of what is distributed; any shape, the same shape back."""


@dataclass(frozen=True)
class MockHalo:
    """A halo that was painted, and so is known.

    Parameters
    ----------
    position : tuple of 3 float
        Centre in Mpc/h, in [0, box size).
    m200c : float
        Mass within `r200c`, Msun/h.
    r200c : float
        Radius whose mean density is 200 times critical, Mpc/h.
    fof_mass : float
        What a friends-of-friends finder would call its mass, Msun/h: about a quarter more than `m200c`.
    site : tuple of 3 float
        Centre of the region of the undisplaced lattice that fell into the halo, Mpc/h.
    """

    position: tuple[float, float, float]
    m200c: float
    r200c: float
    fof_mass: float
    site: tuple[float, float, float]


def r200c_of(m200c: float) -> float:
    """Radius whose mean density is 200 times the critical density.

    Parameters
    ----------
    m200c : float
        Mass within that radius, Msun/h.

    Returns
    -------
    float
        R200c in Mpc/h.
    """
    return float(np.cbrt(3.0 * m200c / (4.0 * np.pi * OVERDENSITY * CRITICAL_DENSITY)))


def lagrangian_radius(m200c: float, cosmology: MockCosmology) -> float:
    """Radius of the sphere at mean density that holds a halo's mass.

    Parameters
    ----------
    m200c : float
        The halo's mass, Msun/h.
    cosmology : MockCosmology
        Gives the mean density.

    Returns
    -------
    float
        Mpc/h.
    """
    return float(np.cbrt(3.0 * m200c / (4.0 * np.pi * cosmology.matter_density)))


def minimum_image(separation: Floats, box_size: float) -> Floats:
    """Separation to the nearest periodic image.

    Parameters
    ----------
    separation : ndarray
        Differences of positions, Mpc/h.
    box_size : float
        Side of the periodic box, Mpc/h.

    Returns
    -------
    ndarray
        Within half a box of zero, Mpc/h.
    """
    return separation - box_size * np.round(separation / box_size)


def halo_masses(massive: int, total_mass: float, rng: np.random.Generator) -> list[float]:
    """Draw the masses of a universe's haloes from a power law.

    Parameters
    ----------
    massive : int
        How many have M200c above 1e13 Msun/h; twice as many (six, if none) have 1e12 to 1e13 Msun/h.
    total_mass : float
        Mass of the box, Msun/h; no halo holds more than a twentieth of it.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    list of float
        M200c in Msun/h, falling.

    Raises
    ------
    ValueError
        If the box is too light for such haloes.
    """
    limit = _LARGEST_MASS_FRACTION * total_mass
    faint = _FAINT_PER_MASSIVE * massive or _FAINT_WITHOUT_MASSIVE
    masses: list[float] = []
    for number, (low, high) in ((massive, _MASSIVE_RANGE), (faint, _FAINT_RANGE)):
        if number and limit <= low:
            raise ValueError(
                f"a box of {total_mass:.2e} Msun/h is too small for haloes above {low:.2e} Msun/h, which must not "
                f"exceed {_LARGEST_MASS_FRACTION} of it; ask for a larger box, or for no massive haloes"
            )
        slope = _MASS_SLOPE + 1.0
        ends = low**slope, min(high, limit) ** slope
        masses += [float((ends[0] + x * (ends[1] - ends[0])) ** (1.0 / slope)) for x in rng.random(number)]
    return sorted(masses, reverse=True)


def place_halos(
    masses: list[float],
    cosmology: MockCosmology,
    field: LinearField,
    displacement: NDArray[np.float32],
    *,
    box_size: float,
    rng: np.random.Generator,
) -> tuple[MockHalo, ...]:
    """Place haloes at density peaks; neither they nor the regions they form from overlap.

    Parameters
    ----------
    masses : list of float
        M200c in Msun/h, falling.
    cosmology : MockCosmology
        Gives the mean density.
    field : LinearField
        Whose peaks are used.
    displacement : ndarray of shape (3, cells, cells, cells)
        From a peak of the lattice to the halo, Mpc/h.
    box_size : float
        Side of the periodic box, Mpc/h.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    tuple of MockHalo
        By falling friends-of-friends mass. With four or more massive haloes, the second by M200c straddles a corner of
        the box, the third an edge and the fourth a face; with fewer, the first of these.

    Raises
    ------
    ValueError
        If there is no room for one of them.
    """
    cells = field.shape[0]
    stride = -(-cells // _SITE_NODES)
    spacing = stride * box_size / cells
    coarse = (slice(None, None, stride),) * 3
    score = field.density(_PEAK_SMOOTHING)[coarse].ravel()
    score /= score.std()
    sites = np.stack(np.meshgrid(*(np.arange(0, cells, stride) * box_size / cells,) * 3, indexing="ij"), axis=-1)
    sites = sites.reshape(-1, 3)
    sites += spacing * rng.uniform(-0.5, 0.5, sites.shape)
    positions = sites + displacement[(slice(None), *coarse)].reshape(3, -1).T

    # Distance to what is already placed, less its own radius: on the lattice, and in the displaced box.
    lattice_room = np.full(len(sites), np.inf)
    room = np.full(len(sites), np.inf)
    axes_on_boundary = _axes_on_boundary(sum(mass >= MASSIVE for mass in masses))
    others = (rank for rank in range(len(masses)) if rank not in axes_on_boundary)
    halos = []
    for rank in (*axes_on_boundary, *others):
        mass = masses[rank]
        radius, lagrangian = r200c_of(mass), lagrangian_radius(mass, cosmology)
        axes = rng.permutation(3)[: axes_on_boundary.get(rank, 0)]
        preference = score - np.sum((minimum_image(positions[:, axes], box_size) / spacing) ** 2, axis=1)
        preference[(lattice_room <= lagrangian) | (room <= _SEPARATION * radius)] = -np.inf
        best = int(np.argmax(preference))
        if not np.isfinite(preference[best]):
            raise ValueError(
                f"a box of {box_size} Mpc/h has no room for {len(masses)} haloes, the next of them of {mass:.2e} "
                "Msun/h; ask for fewer haloes or a larger box"
            )
        site, position = sites[best] % box_size, positions[best] % box_size
        position[axes] = rng.uniform(-1.0, 1.0, len(axes)) * _BOUNDARY_OFFSET * radius % box_size
        halos.append(MockHalo(_triple(position), mass, radius, mass * rng.uniform(*_FOF_EXCESS), _triple(site)))
        distance = np.linalg.norm(minimum_image(sites - site, box_size), axis=1)
        lattice_room = np.minimum(lattice_room, distance - lagrangian)
        distance = np.linalg.norm(minimum_image(positions - position, box_size), axis=1)
        room = np.minimum(room, distance - _SEPARATION * radius)
    return tuple(sorted(halos, key=lambda halo: -halo.fof_mass))


def halo_shape(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the shape of a halo: an ellipsoid of random orientation within the unit sphere.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray of shape (3, 3), float64
        Symmetric; multiplied by points of the unit sphere it gives points of the ellipsoid.
    """
    axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    lengths = [1.0, *(rng.uniform(*ratios) for ratios in _AXIS_RATIOS)]
    return (axes * lengths) @ axes.T


def nfw_profile(m200c: float, contraction: float = 1.0) -> Profile:
    """Navarro, Frenk & White (1997) profile within R200c.

    Parameters
    ----------
    m200c : float
        Mass, which decides the concentration, Msun/h.
    contraction : float
        Factor on the concentration.

    Returns
    -------
    Profile
        From share of mass to radius in R200c.
    """
    concentration = contraction * _CONCENTRATION * (m200c / _CONCENTRATION_PIVOT) ** _CONCENTRATION_SLOPE

    def enclosed(radius: Floats) -> Floats:
        x = concentration * radius
        return np.log1p(x) - x / (1.0 + x)

    return _inverse(enclosed, 1.0)


def beta_profile(core: float, edge: float) -> Profile:
    """Cored isothermal gas, the beta model of Cavaliere & Fusco-Femiano (1976) with beta = 2/3.

    Parameters
    ----------
    core, edge : float
        Core radius and largest radius, R200c.

    Returns
    -------
    Profile
        From share of mass to radius in R200c.
    """
    return _inverse(lambda radius: radius / core - np.arctan(radius / core), edge)


def hernquist_profile(scale: float, edge: float) -> Profile:
    """Stars of a galaxy, after Hernquist (1990).

    Parameters
    ----------
    scale, edge : float
        Scale radius and largest radius, R200c.

    Returns
    -------
    Profile
        From share of mass to radius in R200c.
    """
    return _inverse(lambda radius: (radius / (radius + scale)) ** 2, edge)


def _inverse(enclosed: Profile, edge: float) -> Profile:
    radii = np.concatenate([[0.0], np.geomspace(_INNERMOST_RADIUS, edge, _PROFILE_POINTS)])
    shares = enclosed(radii) / enclosed(np.array([edge]))
    return lambda share: np.interp(share, shares, radii)


def _triple(values: Floats) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _axes_on_boundary(massive: int) -> dict[int, int]:
    """Rank by mass of each halo on the boundary -> number of axes along which it is: 3 corner, 2 edge, 1 face."""
    first = 1 if massive > 3 else 0
    return dict(zip(range(first, massive), (3, 2, 1), strict=False))
