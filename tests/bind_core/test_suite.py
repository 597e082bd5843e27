"""Where a simulation's files are found, in every layout."""

import itertools
from dataclasses import replace

import pytest

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError
from bind_core.findings import FindingCode
from bind_core.parameters import read_parameter_table
from bind_core.suite import discover_simulations, find_simulation, natural_order, simulation_id, simulation_number
from bind_core.validation import inspect_simulation
from storage.mock_suite import CatalogueLayout, MockFormat, SnapshotLayout


@pytest.fixture
def config(tmp_path):
    for base in ("DMO", "Hydro", "FOF"):
        (tmp_path / base).mkdir()
    return DatasetConfig(
        dmo_base=tmp_path / "DMO",
        hydro_base=tmp_path / "Hydro",
        catalogue_base=tmp_path / "FOF",
        output_root=tmp_path / "out",
    )


def touch(base, *paths):
    for path in paths:
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).touch()


def found(inputs):
    return [str(path.relative_to(inputs.folder)) for path in inputs.files]


@pytest.mark.parametrize("layouts", list(zip(SnapshotLayout, CatalogueLayout, strict=True)))
def test_every_layout_of_the_mock_suite_is_found(mock_suite, config_of, layouts):
    """Single files and chunks, under older and newer names, are found whole and without rivals."""
    snapshot, catalogue = layouts
    form = MockFormat(dmo_layout=snapshot, hydro_layout=snapshot, catalogue_layout=catalogue, chunks=3)
    suite = mock_suite(formats=[form], particles_per_side=8, halos_per_simulation=1)
    files = find_simulation("SB35_0", config_of(suite))
    for inputs in files.roles():
        assert len(inputs.files) == (3 if "chunked" in snapshot else 1)
        assert all(path.is_file() for path in inputs.files)
        assert inputs.rivals == ()
        assert inputs.chunks == ((0, 1, 2) if "chunked" in snapshot else None)


@pytest.mark.parametrize(("stem", "number"), list(itertools.product(["snap", "snapshot"], [90, 33, 5, 1234])))
def test_snapshot_numbers_have_three_digits_or_more(config, stem, number):
    """Snapshot 33 is looked for as 033, and only that one is taken."""
    touch(config.dmo_base / "SB35_0", f"{stem}_{number:03d}.hdf5", f"{stem}_091.hdf5")
    files = find_simulation("SB35_0", config.model_copy(update={"snapshot_number": number}))
    assert found(files.dmo) == [f"{stem}_{number:03d}.hdf5"]


def test_chunks_are_in_numerical_order(config):
    """Chunk 10 comes after chunk 2, and files of other kinds are left out."""
    names = [f"snapdir_090/snap_090.{n}.hdf5" for n in range(12)]
    touch(config.dmo_base / "SB35_0", *names, "snapdir_090/snap_090.1.hdf5.part", "snapdir_090/xsnap_090.0.hdf5")
    dmo = find_simulation("SB35_0", config).dmo
    assert found(dmo) == names
    assert dmo.chunks == tuple(range(12))


def test_missing_chunks_show_in_the_numbers(config):
    """The numbers of the chunks found are kept, so that a gap can be named."""
    touch(config.dmo_base / "SB35_0", "snapdir_090/snap_090.0.hdf5", "snapdir_090/snap_090.2.hdf5")
    assert find_simulation("SB35_0", config).dmo.chunks == (0, 2)


def test_broken_links_and_folders_are_no_files(config):
    """A link to nowhere and a folder of a file's name are not taken for files."""
    folder = config.dmo_base / "SB35_0"
    (folder / "snap_090.hdf5").mkdir(parents=True)
    (folder / "snapshot_090.hdf5").symlink_to(folder / "nowhere")
    assert find_simulation("SB35_0", config).dmo.files == ()


def test_zero_padded_chunks_are_found_and_doubled_ones_are_rivals(config):
    """Chunks numbered 00, 01 are found; the same number written twice is ambiguous."""
    folder = config.dmo_base / "SB35_0"
    touch(folder, "snapdir_090/snap_090.00.hdf5", "snapdir_090/snap_090.01.hdf5")
    assert find_simulation("SB35_0", config).dmo.chunks == (0, 1)
    touch(folder, "snapdir_090/snap_090.1.hdf5")
    assert find_simulation("SB35_0", config).dmo.rivals


@pytest.mark.parametrize(
    "pair",
    [
        ("snap_090.hdf5", "snapshot_090.hdf5"),
        ("snap_090.hdf5", "snapdir_090/snap_090.0.hdf5"),
        ("snapdir_090/snap_090.0.hdf5", "snapdir_090/snapshot_090.0.hdf5"),
    ],
)
def test_two_layouts_side_by_side_are_rivals(config, pair):
    """Two generations of a snapshot in one folder are ambiguous, unless one is a link to the other."""
    folder = config.hydro_base / "SB35_0"
    touch(folder, *pair)
    assert [str(path.relative_to(folder)) for path in find_simulation("SB35_0", config).hydro.rivals] == [pair[1]]
    (folder / pair[1]).unlink()
    (folder / pair[1]).symlink_to(folder / pair[0])
    assert find_simulation("SB35_0", config).hydro.rivals == ()


def test_base_path_may_contain_the_folder_of_the_set(config):
    """A base path above the set's folder is understood, each base path for itself."""
    touch(config.dmo_base, "SB35/SB35_3/snap_090.hdf5")
    touch(config.hydro_base, "SB35_3/snap_090.hdf5")
    assert discover_simulations(config) == ["SB35_3"]
    files = find_simulation("SB35_3", config)
    assert files.dmo.files
    assert files.hydro.files


@pytest.mark.parametrize(
    ("set_name", "names", "others"),
    [
        ("SB35", ["SB35_2", "SB35_10"], ["SB3_1", "SB35x_1", "XSB35_1", "SB35", "SB35_", "SB35_1 copy", ".SB35_1"]),
        ("1P", ["1P_0", "1P_p1_n2", "1P_p2_2"], ["11P_0", "CV_3"]),
        ("CV", ["CV_3"], ["1P_p1_n2"]),
    ],
)
def test_simulations_of_a_set_are_told_from_others(config, set_name, names, others):
    """Names such as SB35_2, 1P_p1_n2 and CV_3 are found in natural order, and only those of the set."""
    for name in names + others:
        (config.hydro_base / name).mkdir()
    touch(config.hydro_base, f"{set_name}_99")  # a file, not a folder
    assert discover_simulations(config.model_copy(update={"set_name": set_name})) == names


def test_a_simulation_under_any_base_path_is_listed(config):
    """A simulation that has only some of its parts is listed, so that validation can say what it lacks."""
    for number, base in enumerate((config.dmo_base, config.hydro_base, config.catalogue_base)):
        (base / f"SB35_{number}").mkdir()
    assert discover_simulations(config) == ["SB35_0", "SB35_1", "SB35_2"]


def test_base_paths_that_are_no_folders_are_explained(config):
    """A base path that does not exist is an error that names the setting and the path."""
    broken = config.model_copy(update={"hydro_base": config.hydro_base / "nowhere"})
    with pytest.raises(ConfigurationError, match=r"hydro_base.*nowhere"):
        discover_simulations(broken)


@pytest.mark.parametrize("name", ["CV_0", "SB35", "SB35_", "SB35_../x", "SB35_0/..", "SB35_0\n"])
def test_names_outside_the_set_are_refused(config, name):
    """A name of another set, or one that would lead out of its folder, is refused."""
    with pytest.raises(ConfigurationError, match="SB35"):
        find_simulation(name, config)


def test_ids_and_numbers():
    """The id is the name without its set; it is a number only where it is nothing else."""
    assert simulation_id("1P_p1_n2", "1P") == "p1_n2"
    assert simulation_number("SB35_17", "SB35") == 17
    assert simulation_number("1P_p1_n2", "1P") is None
    assert sorted(["SB35_10", "SB35_2", "SB35_p"], key=natural_order) == ["SB35_2", "SB35_10", "SB35_p"]


def test_folders_that_cannot_be_listed_are_findings(sound_suite, config_of, monkeypatch):
    """A folder without permission is a finding of that simulation, and stops no other."""

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    config = config_of(replace(sound_suite))
    files = find_simulation("SB35_0", config)
    monkeypatch.setattr("os.listdir", forbidden)
    monkeypatch.setattr("pathlib.Path.iterdir", forbidden)
    findings = inspect_simulation(
        find_simulation("SB35_0", config), config, read_parameter_table(sound_suite.parameter_file)
    ).findings
    assert {finding.code for finding in findings} == {FindingCode.MISSING_FILES}
    assert all("Permission denied" in finding.found for finding in findings)
    assert files.dmo.files
