"""The mock suite on disk: where its files are, and what they hold."""

import h5py
import numpy as np
import pytest
from mock_readback import BOX, CHUNKED, SIDE, attribute, digests, files_below, joined, roles, table_of, write

from storage import mock_suite
from storage.mock_formats import VARIED_FORMATS
from storage.mock_suite import CatalogueLayout, Compression, MockFormat, SnapshotLayout


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (SnapshotLayout.SINGLE_OLD, ["snap_090.hdf5"]),
        (SnapshotLayout.SINGLE_NEW, ["snapshot_090.hdf5"]),
        (SnapshotLayout.CHUNKED_OLD, [f"snapdir_090/snap_090.{i}.hdf5" for i in range(3)]),
        (SnapshotLayout.CHUNKED_NEW, [f"snapdir_090/snapshot_090.{i}.hdf5" for i in range(3)]),
    ],
)
def test_snapshots_are_where_the_suites_have_them(tmp_path, layout, expected):
    """Each snapshot layout gives the file names of FACTS.md, in both trees."""
    suite = write(tmp_path, formats=[MockFormat(dmo_layout=layout, hydro_layout=layout)])
    for base, tree in ((suite.dmo_base, "DMO"), (suite.hydro_base, "Hydro")):
        assert base == tmp_path / tree
        assert [path.relative_to(base / "SB35_0").as_posix() for path in files_below(base)] == expected


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        (CatalogueLayout.SINGLE_OLD, ["fof_subhalo_tab_090.hdf5"]),
        (CatalogueLayout.SINGLE_NEW, ["groups_090.hdf5"]),
        (CatalogueLayout.CHUNKED_OLD, [f"groups_090/fof_subhalo_tab_090.{i}.hdf5" for i in range(3)]),
        (CatalogueLayout.CHUNKED_NEW, [f"groups_090/groups_090.{i}.hdf5" for i in range(3)]),
    ],
)
def test_catalogues_are_where_the_suites_have_them(tmp_path, layout, expected):
    """Each catalogue layout gives the file names of FACTS.md."""
    suite = write(tmp_path, formats=[MockFormat(catalogue_layout=layout)])
    found = files_below(suite.catalogue_base)
    assert [path.relative_to(tmp_path / "FOF" / "SB35_0").as_posix() for path in found] == expected


def test_names_and_snapshot_number_are_as_asked(tmp_path):
    """Explicit names, another set and another snapshot number show in folders and file names."""
    suite = write(tmp_path, simulations=["1P_p1_n2"], set_name="1P", snapshot_number=33, formats=[MockFormat()])
    assert suite.names == ("1P_p1_n2",)
    assert suite.parameter_file.name == "CosmoAstroSeed_1P.txt"
    assert roles(suite, "1P_p1_n2")[0] == [tmp_path / "DMO" / "1P_p1_n2" / "snapshot_033.hdf5"]


@pytest.mark.parametrize(
    ("names", "error"), [("SB35_0", TypeError), (["a/b"], ValueError), ([".."], ValueError), ([""], ValueError)]
)
def test_names_that_are_no_folders_are_refused(tmp_path, names, error):
    """A string in place of a list of names, or a name that would leave the suite's folder, is an error."""
    with pytest.raises(error, match="simulation"):
        write(tmp_path, simulations=names)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", [*VARIED_FORMATS, CHUNKED], ids=range(len(VARIED_FORMATS) + 1))
def test_counts_add_up(tmp_path, form):
    """In every format, datasets are as long as their file says, and the files add up to the total."""
    suite = write(tmp_path, formats=[form], wind=True, black_holes=True)
    for files, layout in zip(roles(suite)[:2], (form.dmo_layout, form.hydro_layout), strict=True):
        assert len(files) == (form.chunks if layout.startswith("chunked") else 1)
        total = np.zeros(6, dtype=int)
        for path in files:
            here = attribute(path, "NumPart_ThisFile")
            total += here.astype(int)
            assert attribute(path, "NumFilesPerSnapshot") == len(files)
            with h5py.File(path) as file:
                for kind in range(6):
                    assert (f"PartType{kind}" in file) == (here[kind] > 0)
                    for dataset in file.get(f"PartType{kind}", {}).values():
                        assert len(dataset) == here[kind]
        assert list(attribute(files[0], "NumPart_Total")) == list(total)
        assert total[1] == SIDE**3
    assert total[0] + total[4] + total[5] == SIDE**3
    catalogue = roles(suite)[2]
    positions = joined(catalogue, "Group/GroupPos")
    assert sum(attribute(path, "Ngroups_ThisFile") for path in catalogue) == len(positions)
    assert {int(attribute(path, "Ngroups_Total")) for path in catalogue} == {len(suite.halos["SB35_0"])}


def test_chunks_are_unequal_and_one_has_no_stars(tmp_path):
    """Chunks differ in size, and the second has no PartType4 though others do."""
    hydro = roles(write(tmp_path, particles_per_side=32))[1]
    sizes = [tuple(attribute(path, "NumPart_ThisFile")) for path in hydro]
    assert len({size[1] for size in sizes}) > 1
    assert sizes[1][4] == 0
    assert sizes[0][4] > 0


@pytest.mark.parametrize("compression", list(Compression))
def test_compressed_snapshots_hold_the_same(tmp_path, compression):
    """Compression changes how datasets are stored, not what they hold; Blosc truncates float32 positions a little."""
    plain = roles(write(tmp_path / "plain", formats=[MockFormat()]))
    form = MockFormat(dmo_compression=compression, hydro_compression=compression)
    packed = roles(write(tmp_path / "packed", formats=[form]))
    filters = {Compression.NONE: set(), Compression.GZIP: {"gzip", "shuffle"}, Compression.BLOSC: {"32001"}}
    with h5py.File(packed[0][0]) as file:
        coordinates = file["PartType1/Coordinates"]
        assert set(coordinates._filters) == filters[compression]
        assert (coordinates.chunks is None) == (compression is Compression.NONE)
    before, after = (joined(files[0], "PartType1/Coordinates") for files in (plain, packed))
    assert before.dtype == after.dtype == np.float32
    if compression is Compression.BLOSC:
        np.testing.assert_allclose(after, before, rtol=2.0**-16)
        assert not np.any(after.view(np.uint32) & 0x7F)
    else:
        np.testing.assert_array_equal(after, before)
    for name in ("PartType0/Coordinates", "PartType0/Masses", "PartType1/ParticleIDs"):
        np.testing.assert_array_equal(joined(packed[1], name), joined(plain[1], name))
    assert joined(packed[1], "PartType0/Coordinates").dtype == np.float64


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_have_the_width_asked_for(tmp_path, bits):
    """Counts are 32 bits with a high word, or 64 without."""
    path = roles(write(tmp_path, formats=[MockFormat(count_bits=bits)]))[0][0]
    assert attribute(path, "NumPart_Total").dtype == {32: np.uint32, 64: np.uint64}[bits]
    with h5py.File(path) as file:
        assert ("NumPart_Total_HighWord" in file["Header"].attrs) == (bits == 32)


@pytest.mark.parametrize("style", ["table", "dataset"])
def test_mass_is_conserved_in_the_files(tmp_path, style):
    """Both snapshots hold Omega0 of critical density, wherever the dark matter's mass is written."""
    suite = write(tmp_path, formats=[MockFormat(mass_style=style)])
    totals = []
    for files in roles(suite)[:2]:
        table = attribute(files[0], "MassTable")
        assert (table[1] == 0.0) == (style == "dataset")
        counts = attribute(files[0], "NumPart_Total")
        total = float(table @ counts)
        for kind in range(6):
            masses = joined(files, f"PartType{kind}/Masses")
            total += 0.0 if masses is None else masses.astype(float).sum()
        totals.append(total)
    expected = float(attribute(roles(suite)[0][0], "Omega0")) * 27.7536627 * 50.0**3
    assert totals == pytest.approx([expected, expected], rel=1e-6)


@pytest.mark.parametrize("group", ["Header", "Parameters"])
def test_cosmology_is_in_the_group_asked_for(tmp_path, group):
    """Omega0 and its like are attributes of the one group and not of the other."""
    for files in roles(write(tmp_path, formats=[MockFormat(cosmology_group=group)])):
        with h5py.File(files[0]) as file:
            for name in ("Omega0", "OmegaLambda", "OmegaBaryon", "HubbleParam"):
                assert name in file[group].attrs
                assert (name in file["Header"].attrs) == (group == "Header")
            assert file["Header"].attrs["BoxSize"] == BOX


def test_catalogue_lists_the_known_halos(tmp_path):
    """The catalogue has the known haloes in their order, in the files' units, by falling FOF mass."""
    suite = write(tmp_path)
    catalogue = roles(suite)[2]
    halos = suite.halos["SB35_0"]
    assert joined(catalogue, "Group/GroupPos") == pytest.approx(1e3 * np.array([halo.position for halo in halos]))
    assert joined(catalogue, "Group/Group_M_Crit200") == pytest.approx([halo.m200c / 1e10 for halo in halos])
    assert joined(catalogue, "Group/Group_R_Crit200") == pytest.approx([halo.r200c * 1e3 for halo in halos])
    assert np.all(np.diff(joined(catalogue, "Group/GroupMass")) <= 0.0)
    assert np.all(joined(catalogue, "Group/GroupMass") > joined(catalogue, "Group/Group_M_Crit200"))


def test_number_of_massive_halos_is_as_asked(tmp_path):
    """The option counts the haloes above 1e13 Msun/h."""
    suite = write(tmp_path, halos_per_simulation=3)
    assert np.count_nonzero(joined(roles(suite)[2], "Group/Group_M_Crit200") > 1e3) == 3


def test_halos_are_where_the_catalogue_says(tmp_path):
    """The DMO file's mass within a catalogue radius of a catalogue position is the catalogue's mass."""
    suite = write(tmp_path, particles_per_side=32, formats=[MockFormat()])
    dmo, _, catalogue = roles(suite)
    positions, mass = joined(dmo, "PartType1/Coordinates"), attribute(dmo[0], "MassTable")[1]
    columns = (joined(catalogue, f"Group/{name}") for name in ("GroupPos", "Group_M_Crit200", "Group_R_Crit200"))
    checked = 0
    for position, m200c, r200c in zip(*columns, strict=True):
        if m200c < 30 * mass:
            continue
        separation = np.abs(positions - position)
        separation = np.minimum(separation, BOX - separation)
        within = mass * np.count_nonzero(np.sum(separation**2, axis=1) < r200c**2)
        assert within == pytest.approx(m200c, rel=0.03 + 2.0 * np.sqrt(mass / m200c))
        checked += 1
    assert checked >= 2


def test_wind_and_black_holes_only_on_request(tmp_path):
    """Wind-phase PartType4 and PartType5 are there if asked for, and not otherwise."""
    plain = roles(write(tmp_path / "plain", particles_per_side=32))[1]
    rich = roles(write(tmp_path / "rich", particles_per_side=32, wind=True, black_holes=True))[1]
    name = "PartType4/GFM_StellarFormationTime"
    assert joined(plain, name).min() > 0.0
    assert joined(rich, name).min() < 0.0 < joined(rich, name).max()
    assert joined(plain, "PartType5/Masses") is None
    assert len(joined(rich, "PartType5/Masses")) == 6


def test_same_seed_same_bytes(tmp_path):
    """Two suites of one seed are byte-identical in the default mix of formats; another seed gives other files."""
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for root, seed in ((one, 1), (two, 1), (other, 2)):
        write(root, simulations=4, particles_per_side=8, seed=seed, formats=None)
    assert digests(one) == digests(two)
    for path, digest in digests(other).items():
        assert digests(one).get(path) != digest


def test_a_simulation_does_not_depend_on_its_suite(tmp_path):
    """A simulation has the same bytes alone as among others."""
    write(tmp_path / "many", simulations=3, particles_per_side=8, formats=None)
    write(tmp_path / "alone", simulations=["SB35_2"], particles_per_side=8, formats=None)
    many, alone = digests(tmp_path / "many"), digests(tmp_path / "alone")
    snapshots = {path: digest for path, digest in alone.items() if path.endswith(".hdf5")}
    assert snapshots
    assert snapshots == {path: digest for path, digest in many.items() if "/SB35_2/" in path}


def test_a_suite_grows_without_touching_what_is_there(tmp_path):
    """More simulations are added; those there keep their files; the table then names all of them."""
    write(tmp_path, simulations=2, particles_per_side=8)
    before = {path: path.stat().st_mtime_ns for path in files_below(tmp_path)}
    lines = []
    grown = write(tmp_path, simulations=3, particles_per_side=8, progress=lines.append)
    after = {path: path.stat().st_mtime_ns for path in files_below(tmp_path)}
    assert before.items() < after.items()
    assert lines == ["SB35_0: already there (1 of 3)", "SB35_1: already there (2 of 3)", "SB35_2: written (3 of 3)"]
    assert set(grown.halos) == {"SB35_0", "SB35_1", "SB35_2"}
    write(tmp_path, simulations=["SB35_7"], particles_per_side=8)
    names = [line.split()[0] for line in grown.parameter_file.read_text().splitlines()[1:]]
    assert {"SB35_0", "SB35_1", "SB35_2", "SB35_7"} <= set(names)
    assert len(set(names)) == len(names)


def test_damage_is_repaired_and_other_options_replace(tmp_path):
    """A simulation whose files changed is written again; with another format, the files of the old one go."""
    suite = write(tmp_path, particles_per_side=8)
    before = digests(tmp_path)
    roles(suite)[1][1].unlink()
    roles(suite)[0][0].write_bytes(b"damaged")
    write(tmp_path, particles_per_side=8)
    assert digests(tmp_path) == before
    write(tmp_path, particles_per_side=8, formats=[MockFormat()])
    assert [len(files) for files in roles(suite)] == [1, 1, 1]


def test_an_interrupted_run_leaves_nothing_under_a_final_name(tmp_path, monkeypatch):
    """A run that dies while writing shows no file of that simulation, and the next one completes it."""

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mock_suite, "write_hydro_snapshot", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, particles_per_side=8)
    assert not any((tmp_path / base / "SB35_0").exists() for base in ("DMO", "Hydro", "FOF"))
    write(tmp_path, particles_per_side=8)
    write(tmp_path / "undisturbed", particles_per_side=8)
    undisturbed = digests(tmp_path / "undisturbed")
    assert {path: digests(tmp_path)[path] for path in undisturbed} == undisturbed


def test_formats_are_cycled(tmp_path):
    """The formats asked for are given to the simulations in turn."""
    forms = [MockFormat(dmo_layout=SnapshotLayout.SINGLE_OLD), MockFormat()]
    suite = write(tmp_path, simulations=3, particles_per_side=8, formats=forms)
    names = [roles(suite, name)[0][0].name for name in suite.names]
    assert names == ["snap_090.hdf5", "snapshot_090.hdf5", "snap_090.hdf5"]


def test_the_default_mix_has_every_variant():
    """Between them, the default formats have every layout, compression, count width, mass style and cosmology group."""
    assert {form.dmo_layout for form in VARIED_FORMATS} | {form.hydro_layout for form in VARIED_FORMATS} == set(
        SnapshotLayout
    )
    assert {form.catalogue_layout for form in VARIED_FORMATS} == set(CatalogueLayout)
    compressions = {form.dmo_compression for form in VARIED_FORMATS} | {f.hydro_compression for f in VARIED_FORMATS}
    assert compressions == set(Compression)
    assert {form.count_bits for form in VARIED_FORMATS} == {32, 64}
    assert {form.mass_style for form in VARIED_FORMATS} == {"table", "dataset"}
    assert {form.cosmology_group for form in VARIED_FORMATS} == {"Header", "Parameters"}


@pytest.mark.parametrize(
    "wrong", [{"chunks": 0}, {"count_bits": 16}, {"mass_style": "header"}, {"cosmology_group": "Config"}]
)
def test_impossible_formats_are_refused(wrong):
    """A format that does not exist is an error when it is made."""
    with pytest.raises(ValueError, match=next(iter(wrong)).replace("chunks", "at least one file")):
        MockFormat(**wrong)


def test_parameter_table_looks_like_the_published_one(tmp_path):
    """`#Name` first and `seed` last, leading blanks, the known misspelling, more rows than simulations."""
    suite = write(tmp_path, simulations=3, particles_per_side=8)
    header, rows = table_of(suite)
    assert header[0] == "#Name"
    assert header[-1] == "seed"
    assert "RadioFeedbackReiorientationFactor" in header
    assert all(line.startswith("  ") for line in suite.parameter_file.read_text().splitlines()[1:])
    assert [row["#Name"] for row in rows[:3]] == ["SB35_0", "SB35_1", "SB35_2"]
    assert len(rows) > 3


def test_headers_agree_with_the_parameter_table(tmp_path):
    """Omega0, OmegaBaryon and HubbleParam are the same in table and headers, to the last digit."""
    suite = write(tmp_path, simulations=2, particles_per_side=8)
    for row in table_of(suite)[1][:2]:
        for files in roles(suite, row["#Name"]):
            for name in ("Omega0", "OmegaBaryon", "HubbleParam"):
                assert attribute(files[0], name) == float(row[name])


def test_simulations_differ_in_their_parameters(tmp_path):
    """No two simulations have the same cosmology."""
    _, rows = table_of(write(tmp_path, simulations=5, particles_per_side=8))
    assert len({row["Omega0"] for row in rows}) == len(rows)
