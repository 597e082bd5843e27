"""What validation says of sound, odd and spoilt simulations."""

import random
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bind_core.findings import Finding, FindingCode, Severity
from bind_core.parameters import read_parameter_table
from bind_core.suite import discover_simulations, find_simulation
from bind_core.validation import inspect_simulation, screen_simulation, validate_simulation
from storage.mock_formats import VARIED_FORMATS
from storage.mock_suite import Compression, Defect, MockFormat, write_mock_suite

EXPECTED = {
    Defect.MISSING_DMO_SNAPSHOT: FindingCode.MISSING_FILES,
    Defect.MISSING_HYDRO_SNAPSHOT: FindingCode.MISSING_FILES,
    Defect.MISSING_CATALOGUE: FindingCode.MISSING_FILES,
    Defect.MISSING_FIRST_CHUNK: FindingCode.MISSING_CHUNK,
    Defect.MISSING_MIDDLE_CHUNK: FindingCode.MISSING_CHUNK,
    Defect.MISSING_LAST_CHUNK: FindingCode.MISSING_CHUNK,
    Defect.MISSING_CATALOGUE_CHUNK: FindingCode.MISSING_CHUNK,
    Defect.EXTRA_CHUNK: FindingCode.MISSING_CHUNK,
    Defect.AMBIGUOUS_SNAPSHOT: FindingCode.AMBIGUOUS_FILES,
    Defect.WRONG_TOTAL_COUNT: FindingCode.WRONG_COUNT,
    Defect.WRONG_FILE_COUNT: FindingCode.WRONG_COUNT,
    Defect.WRONG_NUMBER_OF_FILES: FindingCode.MISSING_CHUNK,
    Defect.TRUNCATED_FILE: FindingCode.UNREADABLE,
    Defect.NOT_HDF5: FindingCode.UNREADABLE,
    Defect.MISSING_HEADER: FindingCode.UNREADABLE,
    Defect.MISSING_COORDINATES: FindingCode.UNREADABLE,
    Defect.MISSING_GAS_MASSES: FindingCode.UNREADABLE,
    Defect.MISSING_HALO_MASSES: FindingCode.UNREADABLE,
    Defect.NAN_POSITIONS: FindingCode.NON_FINITE_POSITIONS,
    Defect.INFINITE_POSITIONS: FindingCode.NON_FINITE_POSITIONS,
    Defect.POSITIONS_OUT_OF_BOX: FindingCode.POSITIONS_OUTSIDE,
    Defect.POSITIONS_IN_MPC: FindingCode.POSITIONS_CONFINED,
    Defect.BOX_SIZE_IN_MPC: FindingCode.POSITIONS_OUTSIDE,
    Defect.NEGATIVE_MASS: FindingCode.BAD_MASSES,
    Defect.ZERO_MASS: FindingCode.BAD_MASSES,
    Defect.WRONG_PARTICLE_MASS: FindingCode.MASS_BUDGET,
    Defect.HYDRO_BOX_SIZE: FindingCode.HEADER_MISMATCH,
    Defect.CATALOGUE_BOX_SIZE: FindingCode.HEADER_MISMATCH,
    Defect.HYDRO_OMEGA0: FindingCode.HEADER_MISMATCH,
    Defect.CATALOGUE_OMEGA0: FindingCode.HEADER_MISMATCH,
    Defect.HYDRO_HUBBLE_PARAM: FindingCode.HEADER_MISMATCH,
    Defect.CATALOGUE_HUBBLE_PARAM: FindingCode.HEADER_MISMATCH,
    Defect.HYDRO_REDSHIFT: FindingCode.HEADER_MISMATCH,
    Defect.CATALOGUE_REDSHIFT: FindingCode.HEADER_MISMATCH,
    Defect.NO_PARAMETER_ROW: FindingCode.NO_PARAMETERS,
    Defect.PARAMETERS_CONTRADICT_HEADER: FindingCode.PARAMETERS_CONTRADICT_HEADER,
    Defect.DUPLICATED_PARAMETER_ROW: FindingCode.NO_PARAMETERS,
    Defect.MISPAIRED: FindingCode.MISPAIRED,
    Defect.NO_HYDRO_DARK_MATTER: FindingCode.NO_PARTICLES,
    Defect.HALO_OUT_OF_BOX: FindingCode.BAD_HALO,
    Defect.HALO_POSITION_NAN: FindingCode.BAD_HALO,
    Defect.HALO_MASS_NAN: FindingCode.BAD_HALO,
}
LEGITIMATE = {Defect.EMPTY_CATALOGUE, Defect.NO_MASSIVE_HALO, Defect.NO_STARS}
ROLE_FOLDERS = ("DMO", "Hydro", "FOF", "CosmoAstroSeed")


def looked_at(suite, config, name="SB35_0", depth=validate_simulation):
    return depth(find_simulation(name, config), config, read_parameter_table(suite.parameter_file))


def codes(inspection):
    return {finding.code for finding in inspection.findings}


def test_every_defect_has_an_expectation():
    """A defect that the mock suite learns must be found by validation, or be declared legitimate."""
    assert set(Defect) == set(EXPECTED) | LEGITIMATE


@pytest.mark.parametrize("defect", EXPECTED)
def test_each_defect_is_found_and_explained(mock_suite, config_of, defect):
    """Every defect gives a finding of the fitting code that names a file, what was expected and found, and advice."""
    suite = mock_suite(defects={"SB35_0": [defect]})
    inspection = looked_at(suite, config_of(suite))
    fitting = [finding for finding in inspection.findings if finding.code is EXPECTED[defect]]
    assert fitting
    assert inspection.blocked is (defect is not Defect.WRONG_PARTICLE_MASS)
    for finding in inspection.findings:
        assert str(suite.dmo_base.parent) in finding.where, finding.message
        assert any(folder in finding.where for folder in ROLE_FOLDERS)
        assert finding.expected and finding.found and finding.advice.endswith(".")
        assert all(part in finding.message for part in (finding.where, finding.expected, finding.found))
        assert Finding.from_dict(finding.as_dict()) == finding


@pytest.mark.parametrize("defect", sorted(LEGITIMATE))
def test_legitimate_oddities_are_no_findings(mock_suite, config_of, defect):
    """No stars, no groups and no massive halo are facts of nature, not defects."""
    suite = mock_suite(defects={"SB35_0": [defect]})
    assert looked_at(suite, config_of(suite)).findings == ()


@pytest.mark.parametrize("number", range(len(VARIED_FORMATS)))
@pytest.mark.parametrize("side", [16, 24, 32])
def test_sound_simulations_have_no_findings(mock_suite, config_of, number, side):
    """A sound simulation has neither error nor warning, in any layout and at any resolution from 16^3 up."""
    suite = mock_suite(formats=[VARIED_FORMATS[number]], particles_per_side=side, wind=True, black_holes=True)
    config = config_of(suite, stars="no_wind", black_holes="with_stars")
    assert looked_at(suite, config).findings == ()


def test_several_defects_are_reported_at_once(mock_suite, config_of):
    """Defects of headers, particles, catalogue and table are all reported by one validation."""
    defects = [
        Defect.NAN_POSITIONS,
        Defect.NEGATIVE_MASS,
        Defect.HYDRO_REDSHIFT,
        Defect.HALO_MASS_NAN,
        Defect.NO_PARAMETER_ROW,
        Defect.WRONG_TOTAL_COUNT,
        Defect.MISPAIRED,
    ]
    suite = mock_suite(defects={"SB35_0": defects})
    assert codes(looked_at(suite, config_of(suite))) >= {EXPECTED[defect] for defect in defects}


def test_screening_a_blocked_simulation_reads_its_particles_too(mock_suite, config_of):
    """A simulation that headers block already is told of its bad particles in the same run."""
    suite = mock_suite(defects={"SB35_0": [Defect.HYDRO_REDSHIFT, Defect.NAN_POSITIONS]})
    config = config_of(suite)
    assert FindingCode.NON_FINITE_POSITIONS not in codes(looked_at(suite, config, depth=inspect_simulation))
    assert FindingCode.NON_FINITE_POSITIONS in codes(looked_at(suite, config, depth=screen_simulation))


def test_missing_chunks_are_not_blamed_on_the_phases(mock_suite, config_of):
    """Where a chunk lacks, the fields differ for that reason, and nobody is told that the runs are mispaired."""
    suite = mock_suite(particles_per_side=32, defects={"SB35_0": [Defect.MISSING_FIRST_CHUNK]})
    assert FindingCode.MISPAIRED not in codes(looked_at(suite, config_of(suite)))


def test_absent_simulations_are_one_finding(sound_suite, config_of):
    """A simulation without any folder is absent, which is one finding and not three missing files."""
    findings = looked_at(sound_suite, config_of(sound_suite), "SB35_7").findings
    assert [finding.code for finding in findings] == [FindingCode.ABSENT]


def test_hydro_run_in_place_of_the_dark_matter_only_one_is_found(sound_suite, config_of):
    """A base path that points at the hydro runs twice is an error, though the two fields correlate perfectly."""
    config = config_of(replace(sound_suite, dmo_base=sound_suite.hydro_base))
    assert FindingCode.WRONG_KIND_OF_RUN in codes(looked_at(sound_suite, config, depth=inspect_simulation))


def test_swapped_base_paths_are_found(sound_suite, config_of):
    """Swapping the DMO and hydro base paths is an error in both roles."""
    swapped = replace(sound_suite, dmo_base=sound_suite.hydro_base, hydro_base=sound_suite.dmo_base)
    found = codes(looked_at(sound_suite, config_of(swapped), depth=inspect_simulation))
    assert found >= {FindingCode.WRONG_KIND_OF_RUN, FindingCode.NO_PARTICLES}


def edit(suite, base, change, name="SB35_0"):
    for path in sorted((getattr(suite, base) / name).rglob("*.hdf5")):
        with h5py.File(path, "r+") as file:
            change(file)


def test_catalogue_of_another_simulation_is_found(mock_suite, config_of):
    """Haloes that lie where no dark matter is, though every header agrees, belong to another simulation."""
    suite = mock_suite(particles_per_side=32)

    def move(file):
        if "GroupPos" in file["Group"]:
            box = file["Header"].attrs["BoxSize"]
            file["Group/GroupPos"][...] = (file["Group/GroupPos"][...] + 0.37 * box) % box

    edit(suite, "catalogue_base", move)
    findings = looked_at(suite, config_of(suite)).findings
    assert [finding.code for finding in findings] == [FindingCode.MISPAIRED]


def test_halo_masses_in_another_unit_are_found(mock_suite, config_of):
    """No halo is heavier than all the matter of its box."""
    suite = mock_suite()

    def scale(file):
        if "GroupPos" in file["Group"]:
            file["Group/Group_M_Crit200"][...] *= 1e10

    edit(suite, "catalogue_base", scale)
    assert FindingCode.BAD_HALO in codes(looked_at(suite, config_of(suite), depth=inspect_simulation))


COMMON_ATTRIBUTES = ["BoxSize", "Redshift", "Omega0", "HubbleParam", "OmegaBaryon"]
SNAPSHOT_ATTRIBUTES = [
    "MassTable",
    "NumPart_ThisFile",
    "NumPart_Total",
    "NumPart_Total_HighWord",
    "NumFilesPerSnapshot",
]
CATALOGUE_ATTRIBUTES = ["Ngroups_ThisFile", "Ngroups_Total", "NumFiles"]
ODD_VALUES = [
    np.array([]),
    "ninety",
    h5py.Empty("f8"),
    np.float64("nan"),
    np.float64("inf"),
    np.int64(-1),
    np.float64(0.0),
    np.uint64(2**63),
    np.int32(2**31 - 1),
    np.zeros((2, 3)),
    np.array([1, 2, 3]),
]


@pytest.mark.parametrize(
    ("base", "name"),
    [(base, name) for base in ("dmo_base", "hydro_base") for name in COMMON_ATTRIBUTES + SNAPSHOT_ATTRIBUTES]
    + [("catalogue_base", name) for name in COMMON_ATTRIBUTES + CATALOGUE_ATTRIBUTES],
)
def test_odd_header_values_never_raise(mock_suite, config_of, base, name):
    """Whatever stands in a header attribute, validation returns and says something, in bounded time and memory."""
    suite = mock_suite(formats=[MockFormat()], particles_per_side=8, halos_per_simulation=1)
    config = config_of(suite)
    with h5py.File(next((getattr(suite, base) / "SB35_0").rglob("*.hdf5"))) as file:
        before = file["Header"].attrs[name]
    for odd in ODD_VALUES:

        def put(file, odd=odd):
            file["Header"].attrs[name] = odd

        edit(suite, base, put)
        inspection = looked_at(suite, config)
        same = np.array_equal(np.asarray(before), np.asarray(odd, dtype=object))
        harmless = name in {"OmegaBaryon", "NumPart_Total_HighWord", "Redshift"} or same
        assert inspection.findings or harmless, (name, odd)


def damaged(data, seed, truncate):
    rng = random.Random(seed)  # noqa: S311
    if truncate:
        return data[: rng.randrange(len(data))]
    spoilt = bytearray(data)
    # Metadata is mostly at the front of such small files.
    for _ in range(rng.choice([1, 4, 32])):
        spoilt[rng.randrange(rng.choice([len(spoilt), min(len(spoilt), 4096)]))] = rng.randrange(256)
    return bytes(spoilt)


@pytest.fixture(scope="module")
def tiny_suite(tmp_path_factory):
    form = MockFormat(dmo_compression=Compression.BLOSC, hydro_compression=Compression.GZIP)
    root = tmp_path_factory.mktemp("tiny")
    return write_mock_suite(root, simulations=1, particles_per_side=8, formats=[form], halos_per_simulation=1)


@pytest.mark.timeout(120)
@settings(
    derandomize=True,
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32), truncate=st.booleans(), base=st.sampled_from(["DMO", "Hydro", "FOF"]))
def test_damaged_files_give_findings_or_are_clean(tiny_suite, config_of, tmp_path, seed, truncate, base):
    """Flipped bytes and cut ends never raise: validation reports what it sees."""
    root = tmp_path / "copy"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(tiny_suite.dmo_base.parent, root)
    path = next((root / base / "SB35_0").rglob("*.hdf5"))
    path.write_bytes(damaged(path.read_bytes(), seed, truncate))
    suite = replace(tiny_suite, dmo_base=root / "DMO", hydro_base=root / "Hydro", catalogue_base=root / "FOF")
    inspection = looked_at(suite, config_of(suite))
    assert inspection.findings or not truncate
    assert all(isinstance(finding.severity, Severity) and finding.message for finding in inspection.findings)


def test_findings_name_the_simulation_and_others_go_on(mock_suite, config_of):
    """A spoilt simulation's findings bear its name, and its sound neighbour has none."""
    suite = mock_suite(simulations=2, defects={"SB35_1": [Defect.NOT_HDF5]})
    config = config_of(suite)
    assert discover_simulations(config) == ["SB35_0", "SB35_1"]
    assert looked_at(suite, config, "SB35_0").findings == ()
    assert {finding.simulation for finding in looked_at(suite, config, "SB35_1").findings} == {"SB35_1"}
