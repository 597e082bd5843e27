"""Particles and haloes of a mock universe, and of its twin with gas and stars.

A Gaussian field with a cold-dark-matter power spectrum displaces a lattice of particles (Zel'dovich); at its peaks
haloes of known position and M200c are painted *with the lattice's own particles*, so that no mass appears or vanishes.
The twin has the same phases: its dark matter differs a little, its gas is puffed up, its stars sit in the halo centres.

Nothing here is a substitute for a simulation. It is a known answer of the right shape, at any particle number:
planes of the lattice are made one at a time, so memory grows with the displacement grid (256^3 at most) alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

CRITICAL_DENSITY = 2.77536627e11
"""Critical density today, 3 H0^2 / (8 pi G), in (Msun/h) / (Mpc/h)^3."""

OVERDENSITY = 200.0
"""Mean density within R200c, in units of the critical density."""

MASSIVE = 1e13
"""Least M200c (Msun/h) of what a mock universe calls a massive halo."""

# The displacement grid: never coarser than the first number of cells a side, never finer than the second.
_GRID_CELLS = (16, 256)
# Cells a side of the mesh on which halo sites are sought.
_SITE_CELLS = 32

# Truncated Zel'dovich approximation: without smoothing, shell crossing at z = 0 would dissolve all structure (Mpc/h).
_TRUNCATION = 2.0
_HYDRO_TRUNCATION = 2.005
_GAS_TRUNCATION = 2.2
# Small random differences between the twins' dark matter, one standard deviation (Mpc/h).
_HYDRO_SCATTER = 0.005
# Thermal smoothing of gas outside haloes, one standard deviation (Mpc/h).
_GAS_SCATTER = 0.25
# Lattice points are moved by up to half of this many spacings, which hides the lattice in voids.
_LATTICE_JITTER = 0.5

# Halo masses: dN/dM ~ M^slope (Msun/h), and no halo above this fraction of the box's mass.
_MASS_SLOPE = -1.9
_MASSIVE_RANGE = (1.05e13, 3e14)
_FAINT_RANGE = (1e12, 9.5e12)
_LARGEST_MASS_FRACTION = 0.05
_FAINT_PER_MASSIVE = 2
_FAINT_WITHOUT_MASSIVE = 6
# Friends-of-friends mass over M200c.
_FOF_EXCESS = (1.1, 1.4)
# Peaks of the linear density, smoothed on this scale (Mpc/h), are where haloes form.
_PEAK_SMOOTHING = 3.0
# A halo on the box's boundary sits within this many R200c of it.
_BOUNDARY_OFFSET = 0.5
# The infall region reaches to this many Lagrangian radii.
_REACH = 1.5
# Haloes keep at least this many summed R200c apart.
_SEPARATION = 2.0

# NFW concentration at the pivot mass and its slope (Duffy et al. 2008, rounded); the twin's haloes are a bit tighter.
_CONCENTRATION = 6.0
_CONCENTRATION_PIVOT = 1e13
_CONCENTRATION_SLOPE = -0.09
_HYDRO_CONTRACTION = 1.1
# Gas: beta profile (beta = 2/3) with this core, up to this edge; stars: Hernquist with this scale and edge (R200c).
_GAS_CORE = 0.2
_GAS_EDGE = 1.3
_STAR_SCALE = 0.02
_STAR_EDGE = 0.3
_WIND_SCALE = 0.1
_WIND_EDGE = 0.5
# Share of a halo's gas turned into stars, and into wind where wind is asked for.
_STAR_FRACTION = 0.2
_WIND_FRACTION = 0.02
# Gas masses differ by up to this fraction from their mean.
_GAS_MASS_SCATTER = 0.1
# Scale factors of the births of stars.
_FIRST_STARS = 0.15

# Names of the independent random streams of one universe.
_STREAM_FIELD, _STREAM_HALOS, _STREAM_DARK, _STREAM_GAS, _STREAM_TWIN = range(5)

_PROFILE_POINTS = 2048
# Relative slack when comparing float32 numbers.
_ROUNDING = 1e-5


class ParticleType(IntEnum):
    """Particle types with the numbers they have in snapshots."""

    GAS = 0
    DARK_MATTER = 1
    STARS = 4
    BLACK_HOLES = 5


@dataclass(frozen=True)
class MockCosmology:
    """What the linear power spectrum and the densities depend on. Flat, with negligible radiation.

    Parameters
    ----------
    omega_matter, omega_baryon : float
        Density parameters of all matter and of baryons today.
    hubble : float
        H0 in 100 km/s/Mpc.
    sigma8 : float
        Linear rms fluctuation in spheres of 8 Mpc/h today.
    spectral_index : float
        Slope n_s of the primordial power spectrum.
    """

    omega_matter: float = 0.3
    omega_baryon: float = 0.049
    hubble: float = 0.6711
    sigma8: float = 0.8
    spectral_index: float = 0.9624


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


@dataclass(frozen=True)
class ParticleBlock:
    """Some particles of one type, in lattice order.

    Parameters
    ----------
    kind : ParticleType
        Their type.
    positions : ndarray of shape (n, 3), float64
        Mpc/h, in [0, box size).
    masses : ndarray of shape (n,), float64
        Msun/h.
    ids : ndarray of shape (n,), int64
        One-based, unique within a universe; a star keeps the id of the gas it formed from.
    formation_times : ndarray of shape (n,), float64, or None
        Stars only: the scale factor of birth; <= 0 marks gas in the wind phase.
    """

    kind: ParticleType
    positions: NDArray[np.float64]
    masses: NDArray[np.float64]
    ids: NDArray[np.int64]
    formation_times: NDArray[np.float64] | None = None


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
    return float((3.0 * m200c / (4.0 * np.pi * OVERDENSITY * CRITICAL_DENSITY)) ** (1.0 / 3.0))


def linear_power(wavenumber: Floats, cosmology: MockCosmology) -> Floats:
    """Linear matter power spectrum today, without baryon wiggles.

    Parameters
    ----------
    wavenumber : ndarray
        h/Mpc, > 0.
    cosmology : MockCosmology
        Sets shape and amplitude.

    Returns
    -------
    ndarray
        Power in (Mpc/h)^3, of the shape of `wavenumber`.

    Notes
    -----
    Transfer function of Bardeen, Bond, Kaiser & Szalay (1986), eq. G3, with the shape parameter of Sugiyama (1995),
    normalised by the variance in top-hat spheres of 8 Mpc/h.
    """
    k = np.geomspace(1e-4, 1e2, 2000)
    x = 8.0 * k
    top_hat = 3.0 * (np.sin(x) - x * np.cos(x)) / x**3
    variance = np.trapezoid(k**3 * _unnormalised_power(k, cosmology) * top_hat**2 / (2.0 * np.pi**2), np.log(k))
    return _unnormalised_power(wavenumber, cosmology) * (cosmology.sigma8**2 / variance)


def _unnormalised_power(k: Floats, cosmology: MockCosmology) -> Floats:
    shape = cosmology.omega_matter * cosmology.hubble
    shape *= np.exp(-cosmology.omega_baryon * (1.0 + np.sqrt(2.0 * cosmology.hubble) / cosmology.omega_matter))
    q = k / shape
    transfer = np.log1p(2.34 * q) / (2.34 * q)
    transfer *= (1.0 + 3.89 * q + (16.1 * q) ** 2 + (5.46 * q) ** 3 + (6.71 * q) ** 4) ** -0.25
    return k**cosmology.spectral_index * transfer**2


class MockUniverse:
    """One set of phases, run without and with baryons.

    Parameters
    ----------
    cosmology : MockCosmology
        Densities and power spectrum.
    box_size : float
        Side of the periodic box, Mpc/h.
    particles_per_side : int
        Particles of each species along a side (dark matter; gas and stars together as many).
    seed : int or sequence of int
        Non-negative. The same seed gives the same universe, whatever is made of it first.
    massive_halos : int
        Haloes with M200c above 1e13 Msun/h; twice as many have 1e12 to 1e13 Msun/h. With four or more massive ones
        one straddles a corner, one an edge and one a face of the box; with fewer, the first of these.
    stars, wind, black_holes : bool
        Whether gas in haloes has turned into stars (also wind-phase ones, with `wind`), and whether each massive halo
        has a black hole.

    Raises
    ------
    ValueError
        If a number is out of range, or the box cannot hold the haloes asked for.

    Notes
    -----
    A halo of mass M takes the particles of a lattice sphere with that mass, so M200c is met to within the few particles
    at the sphere's surface. The region around it, up to 1.5 radii, is drawn towards the halo, which gives an infall
    profile of about r^-2.5 outside R200c.
    """

    def __init__(
        self,
        cosmology: MockCosmology,
        *,
        box_size: float,
        particles_per_side: int,
        seed: int | Sequence[int],
        massive_halos: int = 6,
        stars: bool = True,
        wind: bool = False,
        black_holes: bool = False,
    ) -> None:
        if particles_per_side < 1 or massive_halos < 0 or not box_size > 0.0:
            raise ValueError(
                "a mock universe needs particles_per_side >= 1, massive_halos >= 0 and box_size > 0, "
                f"got {particles_per_side}, {massive_halos} and {box_size}"
            )
        if not 0.0 < cosmology.omega_baryon < cosmology.omega_matter:
            raise ValueError(f"baryons must be a part of matter, got {cosmology}")
        self.cosmology = cosmology
        self.box_size = float(box_size)
        self.particles_per_side = int(particles_per_side)
        self._seed = [int(s) for s in (seed if isinstance(seed, Sequence) else [seed])]
        self._massive_halos = massive_halos
        self._stars, self._wind, self._black_holes = stars, wind, black_holes
        self._spacing = self.box_size / self.particles_per_side
        self._cells = int(np.clip(self.particles_per_side, *_GRID_CELLS))

    @property
    def total_mass(self) -> float:
        """Mass of the box, Msun/h; the same in both twins."""
        return self.cosmology.omega_matter * CRITICAL_DENSITY * self.box_size**3

    @property
    def baryon_fraction(self) -> float:
        """Share of the mass that is gas, stars or black holes in the twin with baryons."""
        return self.cosmology.omega_baryon / self.cosmology.omega_matter

    @property
    def particles_per_species(self) -> int:
        """Number of dark-matter particles, and of gas, stars and black holes together."""
        return self.particles_per_side**3

    @property
    def dmo_particle_mass(self) -> float:
        """Mass of a particle of the dark-matter-only twin, Msun/h."""
        return self.total_mass / self.particles_per_species

    @property
    def dark_matter_particle_mass(self) -> float:
        """Mass of a dark-matter particle of the twin with baryons, Msun/h."""
        return self.dmo_particle_mass * (1.0 - self.baryon_fraction)

    @cached_property
    def halos(self) -> tuple[MockHalo, ...]:
        """The painted haloes, by falling friends-of-friends mass: nearly, not exactly, by falling M200c."""
        return tuple(sorted(self._placed(self._halo_masses()), key=lambda halo: -halo.fof_mass))

    def dark_matter_only(self) -> Iterator[ParticleBlock]:
        """Particles of the dark-matter-only twin.

        Yields
        ------
        ParticleBlock
            Dark matter of one lattice plane; all planes in order.
        """
        yield from self._dark_matter(_TRUNCATION, self.dmo_particle_mass, contraction=1.0, scatter=0.0)

    def hydro_dark_matter(self) -> Iterator[ParticleBlock]:
        """Dark matter of the twin with baryons.

        Yields
        ------
        ParticleBlock
            Dark matter of one lattice plane; all planes in order.
        """
        yield from self._dark_matter(
            _HYDRO_TRUNCATION,
            self.dark_matter_particle_mass,
            contraction=_HYDRO_CONTRACTION,
            scatter=_HYDRO_SCATTER,
        )

    def baryon_counts(self) -> dict[ParticleType, int]:
        """How many particles `baryons` will give.

        Returns
        -------
        dict of ParticleType to int
            For gas, stars and black holes; they add up to `particles_per_species`.
        """
        counts = dict.fromkeys((ParticleType.GAS, ParticleType.STARS, ParticleType.BLACK_HOLES), 0)
        for plane in range(self.particles_per_side):
            for fall in self._falls(plane, _STREAM_GAS):
                fates = self._fates(plane, fall)
                counts[ParticleType.STARS] += int(np.count_nonzero((fates == _STAR) | (fates == _WIND)))
                counts[ParticleType.BLACK_HOLES] += int(np.count_nonzero(fates == _BLACK_HOLE))
        taken = counts[ParticleType.STARS] + counts[ParticleType.BLACK_HOLES]
        counts[ParticleType.GAS] = self.particles_per_species - taken
        return counts

    def baryons(self) -> Iterator[ParticleBlock]:
        """Gas, stars and black holes of the twin with baryons.

        Yields
        ------
        ParticleBlock
            For each lattice plane in order, a block for each type that it holds.
        """
        displacement = self._displacement(_GAS_TRUNCATION)
        for plane in range(self.particles_per_side):
            rng = self._rng(_STREAM_GAS, plane)
            positions = self._displaced(plane, displacement, rng, offset=0.5)
            positions += _GAS_SCATTER * rng.standard_normal(positions.shape, dtype=np.float32)
            count = len(positions)
            scatter = _GAS_MASS_SCATTER * rng.uniform(-1.0, 1.0, count // 2)
            masses = np.full(count, self.dmo_particle_mass * self.baryon_fraction)
            masses[: 2 * len(scatter) : 2] *= 1.0 + scatter
            masses[1 : 2 * len(scatter) : 2] *= 1.0 - scatter
            births = np.zeros(count)
            fates = np.zeros(count, dtype=np.int8)
            for fall in self._falls(plane, _STREAM_GAS):
                core_fates = self._fates(plane, fall)
                radii = np.empty(len(core_fates))
                u = fall.rng.random(len(core_fates))
                for fate, profile in _BARYON_PROFILES.items():
                    chosen = core_fates == fate
                    radii[chosen] = profile(u[chosen])
                self._collapse(positions, fall, radii, edge=_GAS_EDGE)
                core = fall.index[fall.ratio < 1.0]
                fates[core] = core_fates
                ages = _FIRST_STARS + (1.0 - _FIRST_STARS) * fall.rng.random(len(core))
                births[core] = np.where(core_fates == _WIND, -ages, ages)
            self._wrap(positions)
            ids = self.particles_per_species + 1 + plane * count + np.arange(count)
            for kind, chosen in (
                (ParticleType.GAS, fates == _GAS),
                (ParticleType.STARS, (fates == _STAR) | (fates == _WIND)),
                (ParticleType.BLACK_HOLES, fates == _BLACK_HOLE),
            ):
                if chosen.any():
                    times = births[chosen] if kind is ParticleType.STARS else None
                    yield ParticleBlock(kind, positions[chosen], masses[chosen], ids[chosen], times)

    def _dark_matter(
        self, truncation: float, mass: float, *, contraction: float, scatter: float
    ) -> Iterator[ParticleBlock]:
        displacement = self._displacement(truncation)
        profiles = [_nfw(contraction * _concentration(halo.m200c)) for halo in self.halos]
        for plane in range(self.particles_per_side):
            positions = self._displaced(plane, displacement, self._rng(_STREAM_DARK, plane), offset=0.0)
            for fall in self._falls(plane, _STREAM_DARK):
                u = fall.rng.random(np.count_nonzero(fall.ratio < 1.0))
                self._collapse(positions, fall, profiles[fall.number](u), edge=1.0)
            if scatter:
                positions += scatter * self._rng(_STREAM_TWIN, plane).standard_normal(positions.shape)
            self._wrap(positions)
            count = len(positions)
            ids = 1 + plane * count + np.arange(count)
            yield ParticleBlock(ParticleType.DARK_MATTER, positions, np.full(count, mass), ids)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([*self._seed, *stream])))

    def _wavenumbers(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Wavenumbers along the axes (h/Mpc), shaped to broadcast over the Fourier grid."""
        fundamental = np.float32(2.0 * np.pi / self.box_size)
        full = fundamental * np.fft.fftfreq(self._cells, 1.0 / self._cells).astype(np.float32)
        half = fundamental * np.arange(self._cells // 2 + 1, dtype=np.float32)
        return full[:, None, None], full[None, :, None], half[None, None, :]

    @cached_property
    def _k_squared(self) -> NDArray[np.float32]:
        kx, ky, kz = self._wavenumbers()
        squared = kx**2 + ky**2 + kz**2
        squared[0, 0, 0] = np.inf  # the mean displaces nothing
        return squared

    @cached_property
    def _density_modes(self) -> NDArray[np.complex64]:
        """Fourier modes of the linear density contrast today, in numpy's convention."""
        shape = (self._cells,) * 3
        modes = np.fft.rfftn(self._rng(_STREAM_FIELD).standard_normal(shape, dtype=np.float32))
        k_fundamental = 2.0 * np.pi / self.box_size
        table_k = np.geomspace(0.5 * k_fundamental, k_fundamental * self._cells, 1024)
        table = np.sqrt(linear_power(table_k, self.cosmology) * self._cells**3 / self.box_size**3)
        for i, k_squared in enumerate(self._k_squared):
            amplitude = np.interp(np.sqrt(k_squared), table_k, table, right=0.0)
            modes[i] *= amplitude.astype(np.float32)
        return modes.astype(np.complex64, copy=False)

    def _smoothed(self, length: float) -> NDArray[np.complex64]:
        return self._density_modes * np.exp(-0.5 * length**2 * self._k_squared)

    def _displacement(self, truncation: float) -> NDArray[np.float32]:
        """Zel'dovich displacement on the grid's nodes: shape (3, cells, cells, cells), Mpc/h."""
        potential = 1j * self._smoothed(truncation) / self._k_squared
        field = np.empty((3, *(self._cells,) * 3), dtype=np.float32)
        nyquist = np.pi * self._cells / self.box_size
        for axis, wavenumbers in enumerate(self._wavenumbers()):
            # the gradient of a Nyquist mode would not be real
            k = np.where(np.abs(wavenumbers) < (1.0 - _ROUNDING) * nyquist, wavenumbers, np.float32(0.0))
            field[axis] = np.fft.irfftn(k * potential, s=field.shape[1:], axes=(0, 1, 2))
        return field

    def _displaced(
        self, plane: int, displacement: NDArray[np.float32], rng: np.random.Generator, offset: float
    ) -> NDArray[np.float64]:
        """Positions of one plane's particles, shape (n, 3), not yet wrapped; `offset` in spacings on every axis."""
        side = self.particles_per_side
        cells = self._cells
        low, high, weight = _neighbours(np.array([(plane + offset) * cells / side]), cells)
        moved = displacement[:, low[0]] * (1 - weight[0]) + displacement[:, high[0]] * weight[0]
        low, high, weight = _neighbours((np.arange(side) + offset) * cells / side, cells)
        if side != cells or weight.any():
            moved = moved[:, low] * (1 - weight[:, None]) + moved[:, high] * weight[:, None]
            moved = moved[:, :, low] * (1 - weight) + moved[:, :, high] * weight
        positions = np.empty((side, side, 3))
        jitter = rng.random((side, side, 3), dtype=np.float32)
        jitter -= 0.5
        jitter *= _LATTICE_JITTER * self._spacing
        lattice = (np.arange(side) + offset) * self._spacing
        positions[..., 0] = lattice[plane]
        positions[..., 1] = lattice[:, None]
        positions[..., 2] = lattice
        positions += jitter
        positions += np.moveaxis(moved, 0, -1)
        return positions.reshape(-1, 3)

    def _wrap(self, positions: NDArray[np.float64]) -> None:
        positions -= self.box_size * np.floor(positions / self.box_size)
        positions[positions >= self.box_size] = 0.0

    def _minimum_image(self, separation: Floats) -> Floats:
        return separation - self.box_size * np.round(separation / self.box_size)

    def _lagrangian_radius(self, m200c: Floats | float) -> Floats:
        mean_density = self.cosmology.omega_matter * CRITICAL_DENSITY
        return np.cbrt(3.0 * np.asarray(m200c) / (4.0 * np.pi * mean_density))

    def _halo_masses(self) -> list[float]:
        rng = self._rng(_STREAM_HALOS, 0)
        low, high = _MASSIVE_RANGE
        high = min(high, _LARGEST_MASS_FRACTION * self.total_mass)
        if self._massive_halos and high <= low:
            raise ValueError(
                f"a box of {self.box_size} Mpc/h is too small for haloes above {MASSIVE:.0e} Msun/h; "
                "ask for none of them, or for a larger box"
            )
        faint_low, faint_high = _FAINT_RANGE
        faint_high = min(faint_high, _LARGEST_MASS_FRACTION * self.total_mass)
        if faint_high <= faint_low:
            raise ValueError(f"a box of {self.box_size} Mpc/h is too small for haloes of {faint_low:.0e} Msun/h")
        faint = _FAINT_PER_MASSIVE * self._massive_halos or _FAINT_WITHOUT_MASSIVE
        masses = [*_power_law(rng.random(self._massive_halos), low, high)] if self._massive_halos else []
        masses += [*_power_law(rng.random(faint), faint_low, faint_high)]
        return sorted((float(mass) for mass in masses), reverse=True)

    def _placed(self, masses: list[float]) -> list[MockHalo]:
        """Haloes of these masses (descending) at density peaks, three of them on the box's boundary."""
        rng = self._rng(_STREAM_HALOS, 1)
        stride = -(-self._cells // _SITE_CELLS)
        cell = stride * self.box_size / self._cells
        coarse = (slice(None, None, stride),) * 3
        shape = (self._cells,) * 3
        density = np.fft.irfftn(self._smoothed(_PEAK_SMOOTHING), s=shape, axes=(0, 1, 2))[coarse].ravel()
        nodes = np.indices(shape)[:, ::stride, ::stride, ::stride].reshape(3, -1).T * (self.box_size / self._cells)
        sites = nodes + cell * rng.uniform(-0.5, 0.5, nodes.shape)
        moved = self._displacement(_TRUNCATION)[:, ::stride, ::stride, ::stride].reshape(3, -1).T
        positions = sites + moved
        score = density / density.std()

        # distance to what is already placed, less its own radius: in the lattice and in the displaced box
        site_room = np.full(len(sites), np.inf)
        room = np.full(len(sites), np.inf)
        ranks = _boundary_ranks(self._massive_halos)
        order = [*ranks, *(rank for rank in range(len(masses)) if rank not in ranks)]
        halos = []
        for rank in order:
            mass = masses[rank]
            radius, lagrangian = r200c_of(mass), float(self._lagrangian_radius(mass))
            free = (site_room > lagrangian) & (room > _SEPARATION * radius)
            preference = score.copy()
            axes = rng.permutation(3)[: ranks.get(rank, 0)]
            preference -= np.sum((self._minimum_image(positions[:, axes]) / cell) ** 2, axis=1)
            preference[~free] = -np.inf
            best = int(np.argmax(preference))
            if not free[best]:
                raise ValueError(
                    f"a box of {self.box_size} Mpc/h has no room for {len(masses)} haloes, the next of them of "
                    f"{mass:.2e} Msun/h; ask for fewer haloes or a larger box"
                )
            site, position = sites[best].copy(), positions[best].copy()
            position[axes] = rng.uniform(-1.0, 1.0, len(axes)) * _BOUNDARY_OFFSET * radius
            self._wrap(position)
            self._wrap(site)
            fof_mass = mass * rng.uniform(*_FOF_EXCESS)
            halos.append(MockHalo(_triple(position), mass, radius, fof_mass, _triple(site)))
            distance = np.linalg.norm(self._minimum_image(sites - site), axis=1)
            site_room = np.minimum(site_room, distance - lagrangian)
            distance = np.linalg.norm(self._minimum_image(positions - position), axis=1)
            room = np.minimum(room, distance - _SEPARATION * radius)
        return halos

    def _falls(self, plane: int, stream: int) -> list[_Fall]:
        """Which particles of a plane fall into or towards which halo; each belongs to one halo at most."""
        offset = 0.5 if stream == _STREAM_GAS else 0.0
        side, spacing = self.particles_per_side, self._spacing
        found = []
        for number, halo in enumerate(self.halos):
            lagrangian = float(self._lagrangian_radius(halo.m200c))
            reach = _REACH * lagrangian
            dx = float(self._minimum_image(np.float64((plane + offset) * spacing - halo.site[0])))
            if abs(dx) >= reach:
                continue
            half = np.sqrt(reach**2 - dx**2)
            (j, dy), (k, dz) = (
                _lattice_within(centre, half, spacing, offset, side) for centre in (halo.site[1], halo.site[2])
            )
            squared = dx**2 + dy[:, None] ** 2 + dz**2
            row, column = np.nonzero(squared < reach**2)
            direction = np.stack([np.full(len(row), dx), dy[row], dz[column]], axis=1)
            ratio = np.sqrt(squared[row, column]) / lagrangian
            index = (j[row] % side) * side + k[column] % side
            found.append((number, index, ratio, direction))
        if not found:
            return []
        nearest = np.full(side * side, np.inf)
        for _, index, ratio, _ in found:
            nearest[index] = np.minimum(nearest[index], ratio)
        falls = []
        for number, index, ratio, direction in found:
            mine = ratio <= nearest[index]
            order = np.argsort(index[mine])
            falls.append(
                _Fall(
                    number,
                    index[mine][order],
                    ratio[mine][order],
                    direction[mine][order],
                    self._rng(stream, plane, number),
                )
            )
        return falls

    def _collapse(self, positions: NDArray[np.float64], fall: _Fall, core_radii: Floats, *, edge: float) -> None:
        """Move a halo's particles: the core to `core_radii` (R200c), its surroundings to between `edge` and infinity."""
        halo = self.halos[fall.number]
        inner = fall.ratio < 1.0
        centre = np.array(halo.position)
        core = fall.index[inner]
        positions[core] = centre + halo.r200c * core_radii[:, None] * _isotropic(fall.rng, len(core))

        outer = ~inner
        shell = fall.index[outer]
        depth = np.log(fall.ratio[outer]) / np.log(_REACH)
        lagrangian = float(self._lagrangian_radius(halo.m200c))
        start = edge * halo.r200c
        radius = start * (_REACH * lagrangian / start) ** depth
        direction = fall.direction[outer] / (lagrangian * fall.ratio[outer])[:, None]
        pulled = self._minimum_image(centre + radius[:, None] * direction - positions[shell])
        weight = 1.0 - depth**2 * (3.0 - 2.0 * depth)
        positions[shell] += weight[:, None] * pulled

    def _fates(self, plane: int, fall: _Fall) -> NDArray[np.int8]:
        """What becomes of the gas in a halo's core; draws from the fall's own stream, so it comes first."""
        core = fall.index[fall.ratio < 1.0]
        chance = fall.rng.random(len(core))
        fates = np.full(len(core), _GAS, dtype=np.int8)
        if self._stars:
            fates[chance < _STAR_FRACTION] = _STAR
            if self._wind:
                fates[chance > 1.0 - _WIND_FRACTION] = _WIND
        halo = self.halos[fall.number]
        if self._black_holes and halo.m200c >= MASSIVE:
            side = self.particles_per_side
            i, j, k = (round(x / self._spacing - 0.5) % side for x in halo.site)
            if i == plane:
                fates[core == j * side + k] = _BLACK_HOLE
        return fates


@dataclass(frozen=True)
class _Fall:
    """Particles of one plane that fall into, or towards, one halo."""

    number: int
    index: NDArray[np.int64]
    ratio: NDArray[np.float64]  # distance from the halo's site, in Lagrangian radii
    direction: NDArray[np.float64]  # separation from the site, Mpc/h
    rng: np.random.Generator


def _triple(values: Floats) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _neighbours(coordinate: Floats, cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    low = np.floor(coordinate).astype(np.int64)
    return low % cells, (low + 1) % cells, (coordinate - low).astype(np.float32)


def _lattice_within(
    centre: float, half: float, spacing: float, offset: float, side: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Unwrapped lattice indices within `half` of `centre`, at most one period of them, and their separations."""
    first = int(np.ceil((centre - half) / spacing - offset))
    last = min(int(np.floor((centre + half) / spacing - offset)), first + side - 1)
    index = np.arange(first, last + 1)
    return index, (index + offset) * spacing - centre


def _boundary_ranks(massive: int) -> dict[int, int]:
    """Mass rank -> number of axes along which that halo sits on the boundary: 3 corner, 2 edge, 1 face."""
    first = 1 if massive > 3 else 0
    return {rank: axes for rank, axes in zip(range(first, massive), (3, 2, 1), strict=False)}


def _power_law(uniform: Floats, low: float, high: float) -> Floats:
    slope = _MASS_SLOPE + 1.0
    return (low**slope + uniform * (high**slope - low**slope)) ** (1.0 / slope)


def _isotropic(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    cosine = rng.uniform(-1.0, 1.0, count)
    angle = rng.uniform(0.0, 2.0 * np.pi, count)
    sine = np.sqrt(1.0 - cosine**2)
    return np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], axis=1)


def _concentration(m200c: float) -> float:
    return float(_CONCENTRATION * (m200c / _CONCENTRATION_PIVOT) ** _CONCENTRATION_SLOPE)


Profile = Callable[[Floats], Floats]


def _inverse(enclosed: Profile, edge: float) -> Profile:
    """Radius (R200c) that encloses a share of the mass within `edge`, tabulated from the enclosed mass."""
    radii = np.concatenate([[0.0], np.geomspace(1e-4, edge, _PROFILE_POINTS)])
    shares = enclosed(radii) / enclosed(np.array([edge]))
    return lambda share: np.interp(share, shares, radii)


def _nfw(concentration: float) -> Profile:
    def enclosed(radius: Floats) -> Floats:
        x = concentration * radius
        return np.log1p(x) - x / (1.0 + x)

    return _inverse(enclosed, 1.0)


def _beta_gas(core: float, edge: float) -> Profile:
    return _inverse(lambda radius: radius / core - np.arctan(radius / core), edge)


def _hernquist(scale: float, edge: float) -> Profile:
    return _inverse(lambda radius: (radius / (radius + scale)) ** 2, edge)


_GAS, _STAR, _WIND, _BLACK_HOLE = range(4)
_BARYON_PROFILES: dict[int, Profile] = {
    _GAS: _beta_gas(_GAS_CORE, _GAS_EDGE),
    _STAR: _hernquist(_STAR_SCALE, _STAR_EDGE),
    _WIND: _hernquist(_WIND_SCALE, _WIND_EDGE),
    _BLACK_HOLE: np.zeros_like,
}
