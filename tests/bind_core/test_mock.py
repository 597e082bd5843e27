"""The mock universe against what is known about it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bind_core.content import CRITICAL_DENSITY
from bind_core.mock import MASSIVE, MockCosmology, MockUniverse
from bind_core.mock_field import LinearField, linear_power
from bind_core.mock_halos import (
    beta_profile,
    halo_masses,
    halo_shape,
    hernquist_profile,
    lagrangian_radius,
    nfw_profile,
    r200c_of,
)
from bind_core.snapshot import ParticleType

BOX = 50.0
SIDE = 32


def universe(seed=1993, side=SIDE, **options):
    return MockUniverse(MockCosmology(), box_size=BOX, particles_per_side=side, seed=seed, **options)


def gathered(blocks):
    """All particles of each type: positions, masses, ids."""
    found = {}
    for block in blocks:
        found.setdefault(block.kind, []).append(block)
    return {
        kind: tuple(np.concatenate([getattr(part, name) for part in parts]) for name in ("positions", "masses", "ids"))
        for kind, parts in found.items()
    }


def mesh(positions, cells, masses=None):
    index = np.floor(positions / BOX * cells).astype(int)
    return np.bincount(np.ravel_multi_index(tuple(index.T), (cells,) * 3), masses, minlength=cells**3)


def distances(positions, centre):
    separation = positions - centre
    separation -= BOX * np.round(separation / BOX)
    return np.linalg.norm(separation, axis=1)


@pytest.fixture(scope="module")
def pair():
    """Make a universe of 64^3 particles: dark matter only, hydro dark matter, gas and stars."""
    made = universe(side=64)
    baryons = gathered(made.baryons())
    return {
        "universe": made,
        "dmo": gathered(made.dark_matter_only())[ParticleType.DARK_MATTER],
        "dark": gathered(made.hydro_dark_matter())[ParticleType.DARK_MATTER],
        "gas": baryons[ParticleType.GAS],
        "stars": baryons[ParticleType.STARS],
    }


def test_power_has_the_asked_sigma8():
    """The power spectrum integrates to sigma8^2 in spheres of 8 Mpc/h."""
    k = np.geomspace(1e-4, 50.0, 20000)
    x = 8.0 * k
    window = 3.0 * (np.sin(x) - x * np.cos(x)) / x**3
    power = linear_power(k, MockCosmology(sigma8=0.83))
    variance = np.trapezoid(k**2 * power * window**2, k) / (2.0 * np.pi**2)
    assert np.sqrt(variance) == pytest.approx(0.83, rel=2e-3)


def test_power_turns_over_where_a_cold_universe_does():
    """Power rises as k^n_s on the largest scales and falls about as k^-2.5 on the smallest shown here."""
    k = np.array([1e-4, 1.1e-4, 10.0, 11.0])
    power = linear_power(k, MockCosmology())
    slopes = np.diff(np.log(power)) / np.diff(np.log(k))
    assert slopes[0] == pytest.approx(0.9624, abs=0.05)
    assert -2.9 < slopes[2] < -2.2


def test_field_has_the_power_it_was_asked_for():
    """Averaged over many modes, the field's power is the linear spectrum's."""
    cells, cosmology = 32, MockCosmology()
    field = LinearField(cosmology, box_size=BOX, cells=cells, rng=np.random.default_rng(4))
    modes = np.fft.rfftn(field.density(0.0))
    full, half = (np.fft.fftfreq(cells, BOX / cells), np.fft.rfftfreq(cells, BOX / cells))
    k = 2.0 * np.pi * np.sqrt(full[:, None, None] ** 2 + full[:, None] ** 2 + half**2)
    chosen = (k > 0.8) & (k < 1.4)
    measured = np.mean(np.abs(modes[chosen]) ** 2 / linear_power(k[chosen], cosmology)) * BOX**3 / cells**6
    assert measured == pytest.approx(1.0, abs=0.05)


def test_divergence_of_the_displacement_is_minus_the_density():
    """The displacement is the Zel'dovich one of the same field."""
    cells = 32
    field = LinearField(MockCosmology(), box_size=BOX, cells=cells, rng=np.random.default_rng(4))
    k = 2.0 * np.pi / BOX * np.fft.fftfreq(cells, 1 / cells)
    divergence = sum(
        np.fft.ifft(1j * k.reshape([-1 if a == axis else 1 for a in range(3)]) * np.fft.fft(part, axis=axis), axis=axis)
        for axis, part in enumerate(field.displacement(3.0).astype(float))
    )
    density = field.density(3.0)
    np.testing.assert_allclose(-divergence.real, density, atol=1e-3 * density.std())


@pytest.mark.parametrize("profile", [nfw_profile(1e13), beta_profile(0.2, 1.0), hernquist_profile(0.02, 1.0)])
def test_profiles_start_at_the_centre_and_end_at_the_edge(profile):
    """No mass is at no radius, all of it within the edge, and radius grows with enclosed mass."""
    radii = profile(np.linspace(0.0, 1.0, 101))
    assert radii[0] == 0.0
    assert radii[-1] == pytest.approx(1.0)
    assert np.all(np.diff(radii) > 0.0)


def test_nfw_encloses_the_textbook_share():
    """At one scale radius an NFW halo of concentration 6 holds (ln 2 - 1/2) / (ln 7 - 6/7) of its mass."""
    share = (np.log(2.0) - 0.5) / (np.log(7.0) - 6.0 / 7.0)
    assert nfw_profile(1e13)(np.array([share]))[0] == pytest.approx(1.0 / 6.0, rel=1e-3)


def test_r200c_encloses_200_critical_densities():
    """M200c over the volume within R200c is 200 times the critical density."""
    radius = r200c_of(3e13)
    assert 3e13 / (4.0 / 3.0 * np.pi * radius**3) == pytest.approx(200.0 * CRITICAL_DENSITY)


def test_halo_shapes_stay_within_the_sphere():
    """A halo's ellipsoid touches the unit sphere and is flattened within it."""
    for seed in range(5):
        lengths = np.linalg.eigvalsh(halo_shape(np.random.default_rng(seed)))
        assert lengths[2] == pytest.approx(1.0)
        assert 0.6 <= lengths[0] <= lengths[1] <= 1.0


def test_halo_masses_are_as_many_as_asked():
    """So many are massive, twice as many are not, and none holds much of the box."""
    masses = halo_masses(7, 1e16, np.random.default_rng(0))
    assert sum(mass >= MASSIVE for mass in masses) == 7
    assert sum(1e12 <= mass < MASSIVE for mass in masses) == 14
    assert masses == sorted(masses, reverse=True)
    assert max(halo_masses(50, 4e14, np.random.default_rng(0))) <= 0.05 * 4e14


def test_both_twins_have_the_mass_of_the_box(pair):
    """Total mass is Omega0 times the critical density times the volume, with and without baryons."""
    expected = 0.3 * CRITICAL_DENSITY * BOX**3
    hydro = sum(pair[part][1].sum() for part in ("dark", "gas", "stars"))
    assert pair["dmo"][1].sum() == pytest.approx(expected, rel=1e-12)
    assert hydro == pytest.approx(expected, rel=1e-12)


def test_baryons_are_the_cosmic_share(pair):
    """Gas and stars together are OmegaBaryon / Omega0 of the mass; a few per cent of them are stars at most."""
    baryons = pair["gas"][1].sum() + pair["stars"][1].sum()
    total = baryons + pair["dark"][1].sum()
    assert baryons / total == pytest.approx(0.049 / 0.3, rel=1e-12)
    assert 0.003 < pair["stars"][1].sum() / baryons < 0.05


def test_gas_particles_differ_in_mass(pair):
    """Gas masses scatter about their mean, so a reader cannot get away with one mass for all."""
    masses = pair["gas"][1]
    assert 0.02 < masses.std() / masses.mean() < 0.1
    assert masses.min() > 0.0


def test_halos_hold_their_mass_within_r200c(pair):
    """Mass within R200c of the dark-matter-only twin is M200c to a few per cent, at the box's boundary too."""
    positions, _, _ = pair["dmo"]
    particle = pair["universe"].dmo_particle_mass
    for halo in pair["universe"].halos:
        if halo.m200c < MASSIVE:
            continue
        within = np.count_nonzero(distances(positions, halo.position) < halo.r200c) * particle
        noise = np.sqrt(particle / halo.m200c)
        assert within == pytest.approx(halo.m200c, rel=0.02 + 2.0 * noise)


def test_halos_are_the_densest_places(pair):
    """The mesh cell of the most massive halo, or one beside it, holds more than any cell without a halo."""
    cells = 64
    counts = mesh(pair["dmo"][0], cells).reshape((cells,) * 3)
    for halo in pair["universe"].halos:
        node = np.floor(np.array(halo.position) / BOX * cells).astype(int)
        counts[np.ix_(*((np.arange(n - 2, n + 3) % cells) for n in node))] = 0
    most_massive = max(pair["universe"].halos, key=lambda halo: halo.m200c)
    core = np.count_nonzero(distances(pair["dmo"][0], most_massive.position) < BOX / cells / 2)
    assert core > counts.max()


def test_some_halos_straddle_the_boundary():
    """One halo reaches over a corner of the box, one over an edge and one over a face."""
    halos = universe().halos
    reached = sorted(
        sum(min(x, BOX - x) < halo.r200c for x in halo.position) for halo in halos if halo.m200c >= MASSIVE
    )
    assert {1, 2, 3} <= set(reached)
    assert all(0.0 <= x < BOX for halo in halos for x in halo.position)


@pytest.mark.parametrize("massive", [0, 1, 2, 3, 20])
def test_as_many_massive_halos_as_asked(massive):
    """The number of massive haloes is the one asked for, from none to more than a small box's worth."""
    halos = universe(side=16, massive_halos=massive).halos
    assert sum(halo.m200c >= MASSIVE for halo in halos) == massive
    assert [halo.fof_mass for halo in halos] == sorted((halo.fof_mass for halo in halos), reverse=True)


def test_halos_do_not_overlap():
    """Neither haloes nor the regions of the lattice that they took overlap."""
    made = universe(massive_halos=20)
    for i, one in enumerate(made.halos):
        for other in made.halos[:i]:
            apart = distances(np.array([one.position]), np.array(other.position))[0]
            sites_apart = distances(np.array([one.site]), np.array(other.site))[0]
            radii = [lagrangian_radius(halo.m200c, made.cosmology) for halo in (one, other)]
            assert apart > one.r200c + other.r200c
            assert sites_apart > sum(radii)


def test_a_box_too_small_for_its_halos_is_refused():
    """What cannot be placed is an error that says so, not a universe with less in it."""
    with pytest.raises(ValueError, match="too small"):
        MockUniverse(MockCosmology(), box_size=5.0, particles_per_side=8, seed=1).halos  # noqa: B018
    with pytest.raises(ValueError, match="no room"):
        MockUniverse(MockCosmology(), box_size=15.0, particles_per_side=8, seed=1, massive_halos=40).halos  # noqa: B018


@pytest.mark.parametrize("changed", [{"side": 0}, {"massive_halos": -1}])
def test_impossible_numbers_are_refused(changed):
    """A universe without particles, or with fewer than no haloes, is an error."""
    with pytest.raises(ValueError, match="needs particles_per_side"):
        universe(**changed)


@pytest.mark.parametrize("side", [8, 16, 32])
def test_twins_correlate(side):
    """The dark matter of a pair is nearly the same on a 16^3 mesh, at any particle number."""
    made = universe(side=side)
    dmo = gathered(made.dark_matter_only())[ParticleType.DARK_MATTER][0]
    dark = gathered(made.hydro_dark_matter())[ParticleType.DARK_MATTER][0]
    cells = min(side, 16)
    assert np.corrcoef(mesh(dmo, cells), mesh(dark, cells))[0, 1] > 0.99
    assert not np.array_equal(dmo, dark)


@pytest.mark.parametrize("seeds", [(1, 2), (1993, 1994), (5, 500)])
def test_other_seeds_do_not_correlate(seeds):
    """Universes of different seeds have nothing to do with each other, though both have a halo at the corner."""
    one, other = (
        mesh(gathered(universe(seed=seed).hydro_dark_matter())[ParticleType.DARK_MATTER][0], 16) for seed in seeds
    )
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.3


def test_gas_follows_the_dark_matter_but_smoother(pair):
    """On a fine mesh gas varies less than dark matter, on a coarse one they agree."""
    dark, gas = (mesh(pair[part][0], 64, pair[part][1]) for part in ("dark", "gas"))
    assert (gas / gas.mean()).var() < 0.6 * (dark / dark.mean()).var()
    dark, gas = (mesh(pair[part][0], 8, pair[part][1]) for part in ("dark", "gas"))
    assert np.corrcoef(dark, gas)[0, 1] > 0.97


def test_halos_are_stars_within_dark_matter_within_gas(pair):
    """In a massive halo half of the stars are closer in than half of the dark matter, and that than half of the gas."""
    halo = max(pair["universe"].halos, key=lambda halo: halo.m200c)
    halves = []
    for part in ("stars", "dark", "gas"):
        radii = distances(pair[part][0], halo.position)
        halves.append(np.median(radii[radii < halo.r200c]))
    assert halves[0] < 0.3 * halves[1]
    assert halves[1] < 0.8 * halves[2]


def test_every_star_belongs_to_a_halo(pair):
    """Stars are found only within R200c of a halo."""
    nearest = np.full(len(pair["stars"][0]), np.inf)
    for halo in pair["universe"].halos:
        nearest = np.minimum(nearest, distances(pair["stars"][0], halo.position) / halo.r200c)
    assert nearest.max() < 1.0


def test_positions_are_in_the_box_and_ids_are_unique(pair):
    """Positions are in [0, box size), and no id is given twice in a snapshot."""
    for part in ("dmo", "dark", "gas", "stars"):
        assert pair[part][0].min() >= 0.0
        assert pair[part][0].max() < BOX
    ids = np.concatenate([pair[part][2] for part in ("dark", "gas", "stars")])
    assert len(np.unique(ids)) == len(ids)
    assert ids.min() == 1


@pytest.mark.parametrize("options", [{}, {"stars": False}, {"wind": True, "black_holes": True}])
def test_counts_are_those_of_the_particles(options):
    """The counts that are promised beforehand are those that come."""
    made = universe(**options)
    counts = made.baryon_counts()
    found = {kind: len(values[2]) for kind, values in gathered(made.baryons()).items()}
    assert {kind: count for kind, count in counts.items() if count} == found
    assert sum(counts.values()) == SIDE**3


def test_stars_have_birth_times_and_wind_has_none():
    """Stars formed between the first ones and today; wind-phase gas, if asked for, is marked by a time <= 0."""

    def times(**options):
        blocks = universe(**options).baryons()
        return np.concatenate([block.formation_times for block in blocks if block.kind is ParticleType.STARS])

    assert np.all((times() > 0.0) & (times() <= 1.0))
    assert 0 < np.count_nonzero(times(wind=True) <= 0.0) < 0.3 * len(times(wind=True))


def test_black_holes_sit_in_massive_halos():
    """Each massive halo has one black hole, at its centre; mass is still conserved."""
    made = universe(black_holes=True)
    particles = gathered(made.baryons())
    centres = {halo.position for halo in made.halos if halo.m200c >= MASSIVE}
    assert {tuple(position) for position in particles[ParticleType.BLACK_HOLES][0]} == centres
    total = sum(masses.sum() for _, masses, _ in particles.values())
    assert total == pytest.approx(made.total_mass * made.baryon_fraction, rel=1e-12)


def test_same_seed_same_particles():
    """A universe depends on its seed alone, not on what was made of it before."""
    fresh, used = universe(), universe()
    for _ in used.baryons():
        pass
    list(used.hydro_dark_matter())
    for make in ("dark_matter_only", "hydro_dark_matter", "baryons"):
        one, other = gathered(getattr(fresh, make)()), gathered(getattr(used, make)())
        assert one.keys() == other.keys()
        for kind in one:
            for a, b in zip(one[kind], other[kind], strict=True):
                np.testing.assert_array_equal(a, b)


def test_more_particles_show_the_same_halos():
    """The haloes' masses do not depend on the number of particles."""
    coarse, fine = ([halo.m200c for halo in universe(side=side).halos] for side in (8, 64))
    assert sorted(coarse) == sorted(fine)


def test_memory_does_not_grow_with_the_particles():
    """Going through 128^3 particles of each species takes less memory than holding one species' positions twice."""
    program = (
        "import resource\n"
        "from bind_core.mock import MockCosmology, MockUniverse\n"
        "u = MockUniverse(MockCosmology(), box_size=50.0, particles_per_side=int(__import__('sys').argv[1]), seed=1)\n"
        "n = sum(len(b.ids) for make in (u.dark_matter_only, u.hydro_dark_matter, u.baryons) for b in make())\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )

    def peak(side):
        done = subprocess.run([sys.executable, "-c", program, str(side)], capture_output=True, text=True, check=True)
        particles, memory = done.stdout.split()
        assert int(particles) == 3 * side**3
        return int(memory)

    positions = 128**3 * 3 * 8
    assert peak(128) - peak(16) < 2.0 * positions
