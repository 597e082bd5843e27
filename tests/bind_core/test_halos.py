"""Catalogues over all their chunks, and the haloes that strata take from them."""

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bind_core.config import Stratum
from bind_core.errors import CatalogueError
from bind_core.halos import HaloCatalogue, halos_in, read_catalogue
from bind_core.suite import find_simulation
from storage.mock_suite import CatalogueLayout, Defect, MockFormat


def write(path, masses, total=None, files=1, **changes):
    """Write a catalogue file by hand: M200c in 1e10 Msun/h; GroupMass twice as large."""
    count = len(masses)
    header = {"Ngroups_ThisFile": count, "Ngroups_Total": count if total is None else total, "NumFiles": files}
    datasets = {
        "GroupPos": np.arange(3.0 * count).reshape(count, 3) * 1000,
        "Group_M_Crit200": np.array(masses, dtype=float),
        "Group_R_Crit200": np.full(count, 500.0),
        "GroupMass": 2 * np.array(masses, dtype=float),
    } | changes
    with h5py.File(path, "w") as file:
        for name, value in header.items():
            file.require_group("Header").attrs[name] = value
        file.create_group("Group")
        if count:
            for name, values in datasets.items():
                if values is not None:
                    file["Group"][name] = values
    return path


def test_units_and_columns(tmp_path):
    """Positions and radii become Mpc/h and masses Msun/h, from Group_M_Crit200 and not from GroupMass."""
    catalogue = read_catalogue([write(tmp_path / "g.hdf5", [1000, 2000])])
    np.testing.assert_array_equal(catalogue.masses, [1e13, 2e13])
    np.testing.assert_array_equal(catalogue.centers, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(catalogue.radii, 0.5)


def test_selection_is_by_m200c(tmp_path):
    """A halo whose GroupMass alone is above the threshold is not taken: the known 20 % too many."""
    catalogue = read_catalogue([write(tmp_path / "g.hdf5", [900, 1100])])
    assert [halo.index for halo in halos_in(catalogue, Stratum(min_mass=1e13))] == [1]


def test_index_runs_over_all_chunks(tmp_path):
    """A halo's index is its row over all chunks in order, empty ones in between included."""
    parts = [[5000, 10], [], [20, 6000, 30]]
    files = [write(tmp_path / f"g.{n}.hdf5", part, total=5, files=3) for n, part in enumerate(parts)]
    halos = halos_in(read_catalogue(files), Stratum())
    assert [(halo.index, halo.ordinal, halo.mass) for halo in halos] == [(0, 0, 5e13), (3, 1, 6e13)]


def test_twelve_chunks_of_a_mock_suite_give_its_known_haloes(mock_suite, config_of):
    """With more than ten chunks the catalogue is still the known haloes in their order."""
    form = MockFormat(catalogue_layout=CatalogueLayout.CHUNKED_OLD, chunks=12)
    suite = mock_suite(formats=[form])
    catalogue = read_catalogue(find_simulation("SB35_0", config_of(suite)).catalogue.files)
    np.testing.assert_allclose(catalogue.masses, [halo.m200c for halo in suite.halos["SB35_0"]], rtol=1e-6)
    np.testing.assert_allclose(catalogue.centers, [halo.position for halo in suite.halos["SB35_0"]], atol=1e-5)


def test_strata_are_open_below_and_closed_above(tmp_path):
    """A mass on a boundary belongs to the lower of two strata that touch, and to one only."""
    catalogue = read_catalogue([write(tmp_path / "g.hdf5", [100, 1000, 10_000])])
    lower, upper = Stratum(min_mass=1e12, max_mass=1e13), Stratum(min_mass=1e13)
    assert [halo.index for halo in halos_in(catalogue, lower)] == [1]
    assert [halo.index for halo in halos_in(catalogue, upper)] == [2]


@given(st.lists(st.floats(1e10, 1e16), max_size=30), st.floats(1e11, 1e15))
def test_touching_strata_share_out_all_haloes(masses, boundary):
    """Whatever the boundary, each halo is in one of two touching strata, in catalogue order, ordinals from 0."""
    zeros = np.zeros(len(masses))
    catalogue = HaloCatalogue((), np.zeros((len(masses), 3)), np.array(masses), zeros)
    below = halos_in(catalogue, Stratum(min_mass=0, max_mass=boundary))
    above = halos_in(catalogue, Stratum(min_mass=boundary))
    assert sorted(halo.index for halo in below + above) == list(range(len(masses)))
    for halos in (below, above):
        assert [halo.ordinal for halo in halos] == list(range(len(halos)))
        assert [halo.index for halo in halos] == sorted(halo.index for halo in halos)


def test_catalogue_without_groups_has_no_halo(mock_suite, config_of):
    """A catalogue with zero groups has no Group datasets, and that is no error."""
    suite = mock_suite(defects={"SB35_0": [Defect.EMPTY_CATALOGUE]})
    catalogue = read_catalogue(find_simulation("SB35_0", config_of(suite)).catalogue.files)
    assert catalogue.masses.shape == (0,)
    assert catalogue.centers.shape == (0, 3)
    assert halos_in(catalogue, Stratum()) == []


def test_nan_masses_are_in_no_stratum(tmp_path):
    """A mass that is not a number is never selected."""
    catalogue = read_catalogue([write(tmp_path / "g.hdf5", [np.nan, 2000])])
    assert [halo.index for halo in halos_in(catalogue, Stratum(min_mass=0))] == [1]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"Group_M_Crit200": None}, "Group_M_Crit200 is missing"),
        ({"GroupPos": np.zeros((2, 2))}, r"\(2, 2\)"),
        ({"Group_M_Crit200": np.ones(3)}, r"\(3,\)"),
        ({"Group_M_Crit200": np.array([b"a", b"b"])}, "numbers"),
    ],
)
def test_damaged_catalogues_are_explained(tmp_path, changes, part):
    """A catalogue without its datasets, or with other shapes than counted, is an error that names file and dataset."""
    path = write(tmp_path / "g.hdf5", [1, 2], **changes)
    with pytest.raises(CatalogueError, match=part) as caught:
        read_catalogue([path])
    assert str(path) in str(caught.value)


def test_files_that_are_no_catalogue_are_explained(tmp_path):
    """A missing file, a file that is no HDF5, and no file at all are errors of their own."""
    (tmp_path / "page.hdf5").write_text("<html>")
    for files in ([tmp_path / "nowhere.hdf5"], [tmp_path / "page.hdf5"], []):
        with pytest.raises(CatalogueError):
            read_catalogue(files)
