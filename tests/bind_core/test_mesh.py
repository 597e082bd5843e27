from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bind_core.mesh import ParticleMesh, cell_counts, cells_per_side_for, scatter

BOX = 50.0


def cell_numbers(positions, cells, box_size=BOX):
    index = np.minimum((positions.astype(np.float64) * (cells / box_size)).astype(int), cells - 1)
    return np.ravel_multi_index(index.T, (cells, cells, cells))


@pytest.fixture
def positions(rng):
    return (rng.random((3000, 3)) * BOX).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("cells", [1, 2, 7, 16])
def test_sort_is_stable_and_complete(positions, cells):
    """The mesh holds the particles of the input in cell order and, within a cell, in input order."""
    masses = np.arange(len(positions), dtype=np.float32)
    mesh = ParticleMesh.build(positions, masses, BOX, cells)
    order = np.argsort(cell_numbers(positions, cells), kind="stable")
    np.testing.assert_array_equal(mesh.positions, positions[order])
    np.testing.assert_array_equal(mesh.masses, masses[order])


def test_cell_starts_delimit_the_particles_of_each_cell(positions):
    """Particles cell_starts[i] to cell_starts[i + 1] lie in cell i."""
    cells = 5
    mesh = ParticleMesh.build(positions, 1.0, BOX, cells)
    owner = np.repeat(np.arange(cells**3), np.diff(mesh.cell_starts))
    np.testing.assert_array_equal(owner, cell_numbers(mesh.positions, cells))
    assert mesh.cell_starts.dtype == np.int64


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("with_masses", [True, False])
def test_a_build_in_parts_is_byte_identical_whatever_their_number(positions, rng, ranks, with_masses):
    """Counting and scattering contiguous ranges after an exclusive scan over ranks gives the serial sort."""
    cells = 9
    masses = rng.random(len(positions)).astype(np.float32) if with_masses else None
    serial = ParticleMesh.build(positions, 1.0 if masses is None else masses, BOX, cells)

    bounds = np.linspace(0, len(positions), ranks + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    counts = np.array([cell_counts(positions[part], BOX, cells) for part in parts])
    starts = np.concatenate([[0], np.cumsum(counts.sum(axis=0))])
    next_slots = starts[:-1] + np.cumsum(counts, axis=0) - counts
    out_positions = np.full_like(positions, np.nan)
    out_masses = None if masses is None else np.full_like(masses, np.nan)
    # Ranks run at the same time, in no order: the last first here
    for part, next_slot in reversed(list(zip(parts, next_slots, strict=True))):
        scatter(
            positions[part],
            None if masses is None else masses[part],
            next_slot,
            out_positions,
            out_masses,
            BOX,
            cells,
        )
    assert out_positions.tobytes() == serial.positions.tobytes()
    assert starts.tolist() == serial.cell_starts.tolist()
    if masses is not None:
        assert out_masses.tobytes() == serial.masses.tobytes()


def test_coordinates_that_round_onto_the_upper_edge_are_wrapped():
    """A float64 coordinate just below the box size, which float32 rounds onto it, becomes zero."""
    edge = np.nextafter(BOX, 0)
    mesh = ParticleMesh.build(np.array([[edge, 25.0, BOX]]), 1.0, BOX, 4)
    assert mesh.positions.tolist() == [[0.0, 25.0, 0.0]]
    assert mesh.cell_starts[8] == 0
    assert mesh.cell_starts[9] == 1


def test_coordinates_just_below_zero_are_wrapped():
    """A coordinate that rounding left just below zero moves to the other side of the box."""
    mesh = ParticleMesh.build(np.array([[-1e-5, -1e-12, 1.0]]), 1.0, BOX, 4)
    assert mesh.positions[0, 0] == pytest.approx(BOX, abs=2e-5)
    assert (mesh.positions >= 0).all()
    assert (mesh.positions < BOX).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 51.0, 25_000.0])
def test_positions_outside_of_the_box_are_refused(positions, bad):
    """A position that is not in the box raises an error with its number, its value and the box size."""
    positions[17, 1] = bad
    with pytest.raises(ValueError, match=r"position 17 of 3000 is .*outside of the box \[0, 50.0\)"):
        ParticleMesh.build(positions, 1.0, BOX)


def test_shapes_that_do_not_fit_are_refused(positions):
    """Positions that are not triples, and masses of another number, raise an error that gives the shapes."""
    with pytest.raises(ValueError, match=r"shape \(n, 3\), found \(3000, 2\)"):
        ParticleMesh.build(positions[:, :2], 1.0, BOX)
    with pytest.raises(ValueError, match=r"3000 positions need as many masses, found the shape \(2999,\)"):
        ParticleMesh.build(positions, np.ones(2999), BOX)
    with pytest.raises(ValueError, match="at least one cell"):
        ParticleMesh.build(positions, 1.0, BOX, 0)


def test_an_empty_species_is_a_mesh():
    """No particles, as where no stars formed, make a mesh of empty cells."""
    mesh = ParticleMesh.build(np.empty((0, 3), dtype=np.float32), np.empty(0, dtype=np.float32), BOX)
    assert len(mesh) == 0
    assert mesh.total_mass == 0
    assert not mesh.cell_starts.any()


def test_total_mass_is_summed_in_double_precision(positions):
    """The total mass counts every particle, for one mass for all as for a mass each."""
    masses = np.full(len(positions), 4e8, dtype=np.float32)
    assert ParticleMesh.build(positions, masses, BOX).total_mass == pytest.approx(3000 * 4e8, rel=1e-12)
    assert ParticleMesh.build(positions, 4e8, BOX).total_mass == pytest.approx(3000 * 4e8, rel=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 2**37), st.floats(1.0, 2000.0))
def test_the_default_mesh_is_affordable(n_particles, box_size):
    """The default cell index never takes much more memory than the particles."""
    cells = cells_per_side_for(n_particles, box_size)
    assert cells >= 1
    assert 8 * cells**3 <= 12 * max(4 * n_particles, 32**3)
