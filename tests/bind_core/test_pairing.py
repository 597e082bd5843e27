"""The coarse fields that tell whether two runs belong together."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bind_core.config import DatasetConfig
from bind_core.mock import MockCosmology, MockUniverse
from bind_core.pairing import add_to_coarse_mesh, coarse_mesh_side, coarsened, empty_coarse_mesh, mesh_correlation

THRESHOLD = DatasetConfig.model_fields["pairing_threshold"].default


def field(positions, side, box_size=50.0):
    mesh = empty_coarse_mesh(side)
    add_to_coarse_mesh(mesh, np.asarray(positions, dtype=np.float32), box_size)
    return mesh


def test_a_particle_is_shared_between_its_eight_cells():
    """One particle three quarters between nodes gives a quarter and three quarters along each axis."""
    mesh = field([[0.75, 0.25, 3.5]], 4, box_size=4.0)
    assert mesh.sum() == pytest.approx(1.0)
    assert mesh[1, 0, 3] == pytest.approx(0.75 * 0.75 * 0.5)
    assert mesh[0, 1, 0] == pytest.approx(0.25 * 0.25 * 0.5)  # over the edge, periodically


@pytest.mark.parametrize("particles", [0, 1, 63, 64, 16**3, 24**3, 32**3 - 1, 32**3, 512**3])
def test_mesh_has_eight_particles_a_cell_where_it_can(particles):
    """The mesh's side is a power of two from 2 to 16 with at least eight particles a cell beyond the smallest."""
    side = coarse_mesh_side(particles)
    assert side in (2, 4, 8, 16)
    assert side == 2 or 8 * side**3 <= particles
    assert side == 16 or 8 * (2 * side) ** 3 > particles


@given(seed=st.integers(0, 1000), side=st.sampled_from([2, 4, 8]))
def test_coarsening_gives_the_coarser_mesh(seed, side):
    """Coarsening a mesh equals filling the coarser one with the same particles."""
    positions = np.random.default_rng(seed).uniform(0, 50, (50, 3)).astype(np.float32)
    np.testing.assert_allclose(coarsened(field(positions, 16), side), field(positions, side), atol=1e-4)


def test_uniform_fields_have_no_phases_to_compare():
    """Two uniform fields are alike, a uniform and a clustered one are not."""
    flat, peaked = np.ones((4, 4, 4)), field([[1, 2, 3]], 4)
    assert mesh_correlation(flat, 2 * flat) == 1.0
    assert mesh_correlation(flat, peaked) == 0.0


def universe(side, seed, **changes):
    cosmology = {"omega_matter": 0.3, "omega_baryon": 0.049, "hubble": 0.67, "sigma8": 0.8, "spectral_index": 0.96}
    return MockUniverse(
        MockCosmology(**cosmology | changes), box_size=50.0, particles_per_side=side, seed=seed, massive_halos=6
    )


def coarse(blocks, side, shift=0.0):
    return field(
        np.concatenate([(block.positions + shift) % 50.0 for block in blocks]) % 50.0, coarse_mesh_side(side**3)
    )


@pytest.mark.parametrize("side", [16, 24, 32, 48])
def test_true_pairs_pass_and_impostors_do_not(side):
    """At every resolution a true pair passes; other phases, a mirrored or transposed box, and a far shift do not."""
    twin = universe(side, 1)
    dmo = coarse(twin.dark_matter_only(), side)
    hydro = coarse(twin.hydro_dark_matter(), side)
    assert mesh_correlation(dmo, hydro) > 0.99 > THRESHOLD
    others = {
        "phases": coarse(universe(side, 2).hydro_dark_matter(), side),
        "mirror": hydro[::-1],
        "transposed": hydro.transpose(2, 1, 0),
        "shifted": coarse(twin.hydro_dark_matter(), side, shift=2.0),
    }
    assert {name: mesh_correlation(dmo, other) < THRESHOLD for name, other in others.items()} == dict.fromkeys(
        others, True
    )


def test_pair_of_runs_with_other_parameters_is_refused():
    """The same phases with sigma8 of 0.9 for 0.8 are another simulation, though they correlate above 0.95."""
    dmo = coarse(universe(32, 1).dark_matter_only(), 32)
    correlation = mesh_correlation(dmo, coarse(universe(32, 1, sigma8=0.9).hydro_dark_matter(), 32))
    assert 0.9 < correlation < THRESHOLD
