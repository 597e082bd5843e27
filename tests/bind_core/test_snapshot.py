"""Reading snapshots: headers, units, storage, policies, and shares of the work."""

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bind_core import particles
from bind_core.config import DatasetConfig
from bind_core.errors import SnapshotError
from bind_core.particles import Piece, component_source, read_slices, share_of
from bind_core.snapshot import Component, ParticleType, read_header
from bind_core.suite import find_simulation
from storage.mock_formats import VARIED_FORMATS

BOX = 50_000.0
CONFIG = DatasetConfig(dmo_base="d", hydro_base="h", catalogue_base="c", output_root="o")
NO_WIND = DatasetConfig(dmo_base="d", hydro_base="h", catalogue_base="c", output_root="o", stars="no_wind")
WITH_BLACK_HOLES = DatasetConfig(
    dmo_base="d", hydro_base="h", catalogue_base="c", output_root="o", black_holes="with_stars"
)
HEADER = {
    "BoxSize": BOX,
    "MassTable": np.array([0.0, 0.5, 0.0, 0.0, 0.0, 0.0]),
    "NumFilesPerSnapshot": np.int32(1),
    "Redshift": 0.0,
    "Omega0": 0.3,
    "HubbleParam": 0.67,
}


def write(path, groups=None, storage=None, **header):
    """Write a snapshot file by hand: groups by particle type, each a mapping of dataset name to array."""
    counts = np.zeros(6, dtype=np.int32)
    for kind, datasets in (groups or {}).items():
        counts[kind] = len(datasets["Coordinates"])
    attributes = HEADER | {"NumPart_ThisFile": counts, "NumPart_Total": counts.astype(np.uint32)} | header
    with h5py.File(path, "w") as file:
        for name, value in attributes.items():
            if value is not None:
                file.require_group("Header").attrs[name] = value
        for kind, datasets in (groups or {}).items():
            for name, values in datasets.items():
                file.create_dataset(f"PartType{kind}/{name}", data=values, **(storage or {}))
    return path


def read(path, component=Component.DMO, config=CONFIG):
    source = component_source(component, [path], config)
    return source, list(read_slices(source, source.pieces))


def positions(count, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).uniform(0, BOX, (count, 3)).astype(dtype)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", ">f8"])
def test_units_are_exact_to_rounding(tmp_path, dtype):
    """Positions become Mpc/h and masses Msun/h, float32, exact to rounding, from either width and byte order."""
    raw = positions(1000, dtype=dtype)
    masses = np.linspace(0.1, 2, 1000).astype(dtype)
    path = write(tmp_path / "s.hdf5", {1: {"Coordinates": raw, "Masses": masses}})
    source, slices = read(path)
    assert source.uniform_mass is None
    assert source.box_size == 50.0
    got = np.concatenate([part.positions for part in slices])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, (raw.astype(np.float64) / 1000).astype(np.float32) % np.float32(50))
    np.testing.assert_array_equal(slices[0].masses, (masses.astype(np.float64) * 1e10).astype(np.float32))
    assert slices[0].tally.mass == pytest.approx(masses.astype(np.float64).sum() * 1e10)


@pytest.mark.parametrize(
    "storage",
    [
        {},
        {"chunks": True, "compression": "gzip", "shuffle": True},
        dict(hdf5plugin.Blosc(cname="lz4")),
        dict(hdf5plugin.Blosc(cname="zstd", shuffle=hdf5plugin.Blosc.BITSHUFFLE)),
    ],
    ids=["plain", "gzip", "blosc-lz4", "blosc-zstd"],
)
def test_compression_makes_no_difference(tmp_path, storage):
    """Plain, gzip and Blosc files of the same particles read the same."""
    raw = positions(3000)
    _, slices = read(write(tmp_path / "s.hdf5", {1: {"Coordinates": raw}}, storage))
    np.testing.assert_array_equal(
        slices[0].positions, read(write(tmp_path / "p.hdf5", {1: {"Coordinates": raw}}))[1][0].positions
    )


def test_mass_table_gives_a_uniform_mass(tmp_path):
    """Without Masses the table's mass holds for all, and no array of masses is made."""
    source, slices = read(write(tmp_path / "s.hdf5", {1: {"Coordinates": positions(10)}}))
    assert source.uniform_mass == 0.5e10
    assert slices[0].masses is None
    assert slices[0].tally.mass == pytest.approx(10 * 0.5e10)


def test_own_masses_win_over_the_table(tmp_path):
    """Where both are there, a particle's own mass counts."""
    path = write(tmp_path / "s.hdf5", {1: {"Coordinates": positions(4), "Masses": np.ones(4, dtype="f4")}})
    source, slices = read(path)
    assert source.uniform_mass is None
    np.testing.assert_array_equal(slices[0].masses, np.float32(1e10))


def test_files_may_differ_in_how_they_give_masses(tmp_path):
    """If one chunk has Masses and another the table, every particle still gets its own."""
    own = {"Coordinates": positions(4), "Masses": np.ones(4, dtype="f4")}
    paths = [
        write(tmp_path / "0.hdf5", {1: own}),
        write(tmp_path / "1.hdf5", {1: {"Coordinates": positions(3)}}),
    ]
    source = component_source(Component.DMO, paths, CONFIG)
    masses = np.concatenate([part.masses for part in read_slices(source, source.pieces)])
    np.testing.assert_array_equal(masses, np.float32([1e10] * 4 + [0.5e10] * 3))


def test_particles_without_any_mass_are_an_error(tmp_path):
    """Neither Masses nor a table mass: the error names both."""
    path = write(tmp_path / "s.hdf5", {0: {"Coordinates": positions(3)}})
    with pytest.raises(SnapshotError, match=r"Masses.*MassTable\[0\]"):
        component_source(Component.GAS, [path], CONFIG)


def test_absent_species_have_no_particles(tmp_path):
    """A species without a group, or with an empty one, gives no pieces and no error."""
    path = write(tmp_path / "s.hdf5", {0: {"Coordinates": np.empty((0, 3), dtype="f4")}})
    for component in (Component.GAS, Component.STARS):
        source, slices = read(path, component)
        assert source.count == 0
        assert slices == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_positions_on_the_far_side_wrap_to_the_near_one(tmp_path, dtype):
    """A position of BoxSize, or one that rounds to it, is 0; rounding below 0 is the far side; none is out of range."""
    values = [BOX, np.nextafter(dtype(BOX), dtype(0)), BOX * (1 + 5e-7), -1e-3, 0.0, BOX / 2]
    raw = np.array([[value] * 3 for value in values], dtype=dtype)
    _, (part,) = read(write(tmp_path / "s.hdf5", {1: {"Coordinates": raw}}))
    assert part.tally.outside == part.tally.non_finite == 0
    assert np.all((part.positions >= 0) & (part.positions < 50))
    assert part.positions[0, 0] == 0
    assert part.positions[5, 0] == 25


def test_positions_far_out_or_not_finite_are_counted_and_made_harmless(tmp_path):
    """Bad positions are counted by particle, with the dataset named, and what is returned stays in the box."""
    raw = positions(8, dtype=np.float64)
    raw[0, 0], raw[1, 1], raw[2], raw[3, 2], raw[4, 0] = np.nan, np.inf, 2 * BOX, -BOX, 1e300
    path = write(tmp_path / "s.hdf5", {1: {"Coordinates": raw}})
    _, (part,) = read(path)
    assert (part.tally.non_finite, part.tally.outside) == (2, 3)
    assert np.all((part.positions >= 0) & (part.positions < 50))
    assert part.tally.bad_positions_in == f"{path}, PartType1/Coordinates"


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf, 1e35, 1e-60])
def test_bad_masses_are_counted(tmp_path, bad):
    """Masses that are zero, negative, not finite, or not so in float32, are counted."""
    masses = np.array([1.0, bad, 1.0])
    path = write(tmp_path / "s.hdf5", {0: {"Coordinates": positions(3), "Masses": masses}})
    _, (part,) = read(path, Component.GAS)
    assert part.tally.bad_masses == 1
    assert part.tally.bad_masses_in.endswith("PartType0/Masses")


def test_slices_are_bounded_and_follow_hdf5_chunks(tmp_path, monkeypatch):
    """However many particles there are, a slice has at most the bound, in whole chunks, and all rows come once."""
    monkeypatch.setattr(particles, "SLICE_ROWS", 100)
    raw = positions(1050)
    path = write(tmp_path / "s.hdf5", {1: {"Coordinates": raw}}, {"chunks": (30, 3)})
    source, slices = read(path)
    assert max(len(part.positions) for part in slices) == 90
    assert all(piece.start % 30 == 0 for piece in source.pieces)
    np.testing.assert_array_equal(
        np.concatenate([part.positions for part in slices]), (raw.astype(float) / 1000).astype("f4")
    )


@pytest.mark.parametrize("low_type", [np.uint32, np.int32])
def test_32_bit_counts_have_a_high_word(tmp_path, low_type):
    """Totals above 2^32 are joined from two words, also where the lower one is written as a signed number."""
    total = 3 * 2**32 + 2**31 + 5
    low = np.array([0, total % 2**32, 0, 0, 0, 0], dtype=np.uint32).view(low_type)
    high = np.array([0, total // 2**32, 0, 0, 0, 0], dtype=np.uint32)
    path = write(tmp_path / "s.hdf5", NumPart_Total=low, NumPart_Total_HighWord=high)
    assert read_header(path).counts_total[1] == total


def test_64_bit_counts_stand_alone(tmp_path):
    """64-bit totals are whole, with no high word or with one that repeats their upper half."""
    total = np.array([0, 5 * 2**32 + 7, 0, 0, 0, 0], dtype=np.uint64)
    assert read_header(write(tmp_path / "a.hdf5", NumPart_Total=total)).counts_total[1] == total[1]
    path = write(tmp_path / "b.hdf5", NumPart_Total=total, NumPart_Total_HighWord=np.uint32([0, 5, 0, 0, 0, 0]))
    assert read_header(path).counts_total[1] == total[1]


def test_cosmology_may_stand_in_another_group(tmp_path):
    """Attributes that the Header lacks are taken from Parameters; what the file does not say of baryons is None."""
    path = write(tmp_path / "s.hdf5", Omega0=None)
    with h5py.File(path, "r+") as file:
        file.create_group("Parameters").attrs["Omega0"] = 0.25
    header = read_header(path)
    assert header.omega0 == 0.25
    assert header.omega_baryon is None
    assert header.box_size == 50.0
    assert header.mass_table[1] == 0.5e10


@pytest.mark.parametrize("name", HEADER)
def test_missing_attributes_are_named(tmp_path, name):
    """A header that lacks an attribute is an error that names file and attribute."""
    path = write(tmp_path / "s.hdf5", NumPart_Total=np.zeros(6), **{name: None})
    with pytest.raises(SnapshotError, match=name) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("datasets", "part"),
    [
        ({"Coordinates": np.zeros((5, 3), dtype="i4")}, "floating-point"),
        ({"Coordinates": np.zeros((5, 2), dtype="f4")}, r"\(5, 2\)"),
        ({"Coordinates": np.zeros((5, 3), dtype="f4"), "Masses": np.ones(4)}, r"\(4,\)"),
    ],
)
def test_datasets_of_another_shape_or_type_are_errors(tmp_path, datasets, part):
    """Coordinates and Masses must have the counted rows and be floating-point."""
    path = write(tmp_path / "s.hdf5", {1: datasets})
    with pytest.raises(SnapshotError, match=part):
        component_source(Component.DMO, [path], CONFIG)


def stars(tmp_path):
    formed = np.array([0.5, -0.1, 0.0, 1.0, np.nan])
    masses = np.arange(1.0, 6.0)
    groups = {
        4: {"Coordinates": positions(5), "Masses": masses, "GFM_StellarFormationTime": formed},
        5: {"Coordinates": positions(2, seed=1), "Masses": np.array([100.0, 200.0])},
    }
    return write(tmp_path / "s.hdf5", groups)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, [1, 2, 3, 4, 5]),
        (NO_WIND, [1, 4]),
        (WITH_BLACK_HOLES, [1, 2, 3, 4, 5, 100, 200]),
    ],
    ids=["all", "no_wind", "with_stars"],
)
def test_star_and_black_hole_policies(tmp_path, config, expected):
    """All takes wind-phase gas with the stars, no_wind only what has formed, with_stars adds black holes."""
    _, slices = read(stars(tmp_path), Component.STARS, config)
    masses = np.concatenate([part.masses for part in slices])
    np.testing.assert_array_equal(masses, np.float32(expected) * np.float32(1e10))


def test_no_wind_needs_formation_times(tmp_path):
    """Without formation times wind cannot be told from stars, which is an error and not a guess."""
    path = write(tmp_path / "s.hdf5", {4: {"Coordinates": positions(3), "Masses": np.ones(3)}})
    with pytest.raises(SnapshotError, match="GFM_StellarFormationTime"):
        component_source(Component.STARS, [path], NO_WIND)


@given(
    sizes=st.lists(st.integers(1, 1000), max_size=60),
    parts=st.integers(1, 80),
)
def test_shares_partition_the_pieces_in_order(sizes, parts):
    """The shares of any number of workers, one after the other, are all pieces in order, each once."""
    pieces = [Piece("f", ParticleType.GAS, sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    shares = [share_of(pieces, part, parts) for part in range(parts)]
    assert [piece for share in shares for piece in share] == pieces
    if pieces:
        fair = sum(sizes) / parts
        assert max(sum(p.stop - p.start for p in share) for share in shares) <= fair + max(sizes)


@pytest.mark.parametrize("form", VARIED_FORMATS)
@pytest.mark.parametrize("component", Component)
def test_shares_together_read_what_one_reader_reads(mock_suite, config_of, form, component):
    """In every format, three readers together see the particles of one reader, in the same order and to the bit."""
    suite = mock_suite(formats=[form])
    config = config_of(suite)
    files = find_simulation("SB35_0", config)
    source = component_source(component, (files.dmo if component is Component.DMO else files.hydro).files, config)
    whole = np.concatenate([part.positions for part in read_slices(source, source.pieces)])
    shared = [part.positions for rank in range(3) for part in read_slices(source, share_of(source.pieces, rank, 3))]
    assert source.count == len(whole)
    np.testing.assert_array_equal(np.concatenate(shared), whole)
