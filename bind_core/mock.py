"""Particles and haloes of a mock universe, and of its twin with gas and stars.

A Gaussian field with a cold-dark-matter power spectrum displaces a lattice of particles (Zel'dovich); at its peaks
haloes of known position and M200c are painted *with the lattice's own particles*, so that no mass appears or vanishes.
The twin has the same phases: its dark matter differs a little, its gas is puffed up, its stars sit in the halo centres.

Nothing here is a substitute for a simulation. It is a known answer of the right shape, at any particle number:
planes of the lattice are made one at a time, so memory grows with the displacement grid (256^3 at most) alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bind_core.mock_field import Floats, LinearField, MockCosmology
from bind_core.mock_halos import (
    MASSIVE,
    MockHalo,
    Profile,
    beta_profile,
    halo_masses,
    halo_shape,
    hernquist_profile,
    lagrangian_radius,
    minimum_image,
    nfw_profile,
    place_halos,
)
from bind_core.snapshot import ParticleType

__all__ = ["MASSIVE", "MockCosmology", "MockHalo", "MockUniverse", "ParticleBlock"]

# The displacement grid: never coarser than the first number of cells a side, never finer than the second.
_GRID_CELLS = (16, 256)

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

# The infall region reaches to this many Lagrangian radii.
_REACH = 1.5
# Concentration of the hydro twin's dark matter, in that of the dark-matter-only one's.
_HYDRO_CONTRACTION = 1.1
# Gas: beta profile with this core, up to this edge; stars and wind: Hernquist with this scale and edge (R200c).
_GAS_CORE, _GAS_EDGE = 0.2, 1.3
_STAR_SCALE, _STAR_EDGE = 0.02, 0.3
_WIND_SCALE, _WIND_EDGE = 0.1, 0.5
# Share of a halo's gas turned into stars, and into wind where wind is asked for.
_STAR_FRACTION = 0.2
_WIND_FRACTION = 0.02
# Gas masses differ by up to this fraction from their mean.
_GAS_MASS_SCATTER = 0.1
# Scale factor of the first births of stars.
_FIRST_STARS = 0.15

# Names of the independent random streams of one universe.
_STREAM_FIELD, _STREAM_MASSES, _STREAM_SITES, _STREAM_SHAPES, _STREAM_DARK, _STREAM_GAS, _STREAM_TWIN = range(7)

# What becomes of a gas particle.
_GAS, _STAR, _WIND, _BLACK_HOLE = range(4)
_BARYON_PROFILES: dict[int, Profile] = {
    _GAS: beta_profile(_GAS_CORE, _GAS_EDGE),
    _STAR: hernquist_profile(_STAR_SCALE, _STAR_EDGE),
    _WIND: hernquist_profile(_WIND_SCALE, _WIND_EDGE),
    _BLACK_HOLE: np.zeros_like,
}


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

    @property
    def total_mass(self) -> float:
        """Mass of the box, Msun/h; the same in both twins."""
        return self.cosmology.matter_density * self.box_size**3

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
        masses = halo_masses(self._massive_halos, self.total_mass, self._rng(_STREAM_MASSES))
        return place_halos(
            masses,
            self.cosmology,
            self._field,
            self._field.displacement(_TRUNCATION),
            box_size=self.box_size,
            rng=self._rng(_STREAM_SITES),
        )

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
        displacement = self._field.displacement(_GAS_TRUNCATION)
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
        displacement = self._field.displacement(truncation)
        profiles = [nfw_profile(halo.m200c, contraction) for halo in self.halos]
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

    @cached_property
    def _field(self) -> LinearField:
        cells = int(np.clip(self.particles_per_side, *_GRID_CELLS))
        return LinearField(self.cosmology, box_size=self.box_size, cells=cells, rng=self._rng(_STREAM_FIELD))

    @cached_property
    def _shapes(self) -> list[NDArray[np.float64]]:
        return [halo_shape(self._rng(_STREAM_SHAPES, halo=number)) for number in range(len(self.halos))]

    def _rng(self, stream: int, plane: int = -1, halo: int = -1) -> np.random.Generator:
        # All of one length: a seed sequence does not tell an entropy of [1] from one of [1, 0].
        entropy = [*self._seed, stream, plane + 1, halo + 1]
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy)))

    def _displaced(
        self, plane: int, displacement: NDArray[np.float32], rng: np.random.Generator, offset: float
    ) -> NDArray[np.float64]:
        """Positions of one plane's particles, shape (n, 3), not yet wrapped; `offset` in spacings on every axis."""
        side = self.particles_per_side
        cells = displacement.shape[1]
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

    def _falls(self, plane: int, stream: int) -> list[_Fall]:
        """Find which particles of a plane fall into or towards which halo; each belongs to one halo at most."""
        offset = 0.5 if stream == _STREAM_GAS else 0.0
        side, spacing = self.particles_per_side, self._spacing
        found = []
        for number, halo in enumerate(self.halos):
            lagrangian = lagrangian_radius(halo.m200c, self.cosmology)
            reach = _REACH * lagrangian
            dx = float(minimum_image(np.array((plane + offset) * spacing - halo.site[0]), self.box_size))
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
        """Move a halo's particles: the core to `core_radii` (R200c), its surroundings towards `edge` (R200c)."""
        halo = self.halos[fall.number]
        inner = fall.ratio < 1.0
        centre = np.array(halo.position)
        core = fall.index[inner]
        positions[core] = centre + halo.r200c * core_radii[:, None] * (
            _isotropic(fall.rng, len(core)) @ self._shapes[fall.number]
        )

        outer = ~inner
        shell = fall.index[outer]
        depth = np.log(fall.ratio[outer]) / np.log(_REACH)
        lagrangian = lagrangian_radius(halo.m200c, self.cosmology)
        start = edge * halo.r200c
        radius = start * (_REACH * lagrangian / start) ** depth
        direction = fall.direction[outer] / (lagrangian * fall.ratio[outer])[:, None]
        pulled = minimum_image(centre + radius[:, None] * direction - positions[shell], self.box_size)
        weight = 1.0 - depth**2 * (3.0 - 2.0 * depth)
        positions[shell] += weight[:, None] * pulled

    def _fates(self, plane: int, fall: _Fall) -> NDArray[np.int8]:
        """Decide what becomes of the gas in a halo's core: the first draws from the fall's own stream."""
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


def _neighbours(coordinate: Floats, cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    low = np.floor(coordinate).astype(np.int64)
    return low % cells, (low + 1) % cells, (coordinate - low).astype(np.float32)


def _lattice_within(
    centre: float, half: float, spacing: float, offset: float, side: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Unwrapped lattice indices within `half` of `centre`, at most one period of them, and their separations."""
    first = int(np.ceil((centre - half) / spacing - offset))
    last = min(int(np.floor((centre + half) / spacing - offset)), first + side - 1)
    index = np.arange(first, last + 1, dtype=np.int64)
    return index, ((index + offset) * spacing - centre).astype(np.float64)


def _isotropic(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    cosine = rng.uniform(-1.0, 1.0, count)
    angle = rng.uniform(0.0, 2.0 * np.pi, count)
    sine = np.sqrt(1.0 - cosine**2)
    return np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], axis=1)
