"""The audit of a data set's rows, files and plan: what is wrong is named, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
from block_runs import layout_of, make, manifest_of
from damaged_datasets import AuditedDataset, mock_dataset
from mpi4py import MPI

from bind_core.config import DatasetConfig
from bind_core.findings import Severity
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.projection import Backend
from storage.audit_depth import Depth
from storage.audit_result import AuditCode, Outcome
from storage.blocks import block_outcomes, plan_block, screen_block
from storage.checklist import MOST_FINDINGS, Checklist, Offenders
from storage.files import TEMPORARY_SUFFIX
from storage.manifest import ManifestError, open_dataset
from storage.queries import query
from storage.recording import commit_outcomes
from storage.versions import resolve_version
from storage.workload import plan_workload
from tasks.projection_job import project_block

pytestmark = pytest.mark.mpi

FIRST, SECOND = "SB35_0_halo_0_rot_0", "SB35_0_halo_0_rot_1"
TEST_SIMULATION = "SB35_3"


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> AuditedDataset:
    """Return a sound data set; tests must not change it."""
    return mock_dataset(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def dataset(sound: AuditedDataset, tmp_path: Path) -> AuditedDataset:
    """Return a copy that a test may damage."""
    return sound.copied_to(tmp_path / "copy")


def of_simulation(dataset: AuditedDataset, simulation: str) -> set[str]:
    return set(dataset.rows.filter(pl.col("simulation") == simulation)["sample_id"])


@pytest.mark.parametrize("depth", Depth)
def test_a_sound_data_set_has_no_finding(sound: AuditedDataset, depth: Depth) -> None:
    """Of 80 samples as they were made, no check finds anything; those that need more samples say so."""
    result = sound.audit(depth)
    assert (result.ok, result.errors, result.warnings, result.findings) == (True, 0, 0, ())
    assert {check.name for check in result.checks if check.passed is None} == {
        "lines of sight are uniform on the sphere",
        "turns about the line of sight are uniform",
        "the train simulations' parameters cover those of the test simulations",
    }
    assert result.verdict.startswith("Sound: 80 samples of 4 simulations")
    states = result.simulations.select("simulation", "planned", "committed", "missing", "stale", "broken").rows()
    assert states == [(f"SB35_{number}", 20, 20, 0, 0, 0) for number in range(4)]
    assert set(result.simulations["status"]) == {"complete"}


@pytest.mark.camels_mini
@pytest.mark.parametrize("backend", [Backend.FUSED])
def test_real_simulations_have_no_finding(camels_mini: Path, tmp_path: Path, backend: Backend) -> None:
    """Ten orientations of every massive halo of three real simulations pass every check at both depths."""
    config = DatasetConfig(
        dmo_base=camels_mini / "DMO",
        hydro_base=camels_mini / "Hydro",
        catalogue_base=camels_mini / "FOF",
        output_root=tmp_path / "dataset",
        backend=backend,
    )
    make(config)
    dataset = AuditedDataset(tmp_path, config)
    for depth in Depth:
        result = dataset.audit(depth)
        assert (result.errors, result.warnings) == (0, 0), [finding.message for finding in result.findings]
        assert result.samples.height == 1250
        undecided = [check.name for check in result.checks if check.passed is None]
        assert undecided == ["the train simulations' parameters cover those of the test simulations"]


def test_a_deleted_file_is_missing(dataset: AuditedDataset) -> None:
    """A row without its file is named as such at both depths, and its simulation counts one broken sample."""
    dataset.file(FIRST).unlink()
    assert dataset.found(Depth.KNOWN) == dataset.found() == {"missing_file": {FIRST}}
    result = dataset.audit(Depth.KNOWN)
    assert not result.ok
    assert dict(result.simulations.select("simulation", "broken").rows())["SB35_0"] == 1


def test_a_truncated_file_has_another_size(dataset: AuditedDataset) -> None:
    """A file that was cut off is named by its size, and when read also by its digest and as unreadable."""
    path = dataset.file(FIRST)
    path.write_bytes(path.read_bytes()[:-100])
    assert dataset.found(Depth.KNOWN) == {"wrong_size": {FIRST}}
    assert dataset.found() == {"wrong_size": {FIRST}, "wrong_digest": {FIRST}, "unreadable_file": {FIRST}}


def test_a_lost_row_is_told_from_an_orphan(dataset: AuditedDataset) -> None:
    """A planned sample's file without a row is an error where the record counted more samples than there are."""
    dataset.delete_rows(f"sample_id = '{FIRST}'")
    found = {"unrecorded_sample": {FIRST}, "wrong_count": {"SB35_0"}, "missing_sample": {"SB35_0"}}
    assert dataset.found(Depth.KNOWN) == found
    (lost,) = [f for f in dataset.audit(Depth.KNOWN).findings if f.code is AuditCode.UNRECORDED_SAMPLE]
    assert lost.severity is Severity.ERROR
    assert "lost" in lost.advice


def test_a_lost_row_is_made_again_by_the_next_run(dataset: AuditedDataset) -> None:
    """After the Delta library has removed a row, the table can be asked and planned with, and a run makes it whole."""
    dataset.delete_rows(f"sample_id = '{FIRST}'")
    named = query(layout_of(dataset.config), "SELECT * FROM samples WHERE simulation = 'SB35_0'")
    assert named.height == 19
    make(dataset.config, run_id="again")
    assert dataset.found() == {}


def test_what_an_interrupted_run_left_is_a_warning(dataset: AuditedDataset) -> None:
    """A planned sample's file without a row, in a simulation whose count is right, is for the next run to take up."""
    dataset.delete_rows(f"sample_id = '{FIRST}'")
    dataset.update_rows("simulation = 'SB35_0'", table="simulations", n_committed=19)
    result = dataset.audit(Depth.KNOWN)
    assert {finding.code for finding in result.findings} == {AuditCode.UNRECORDED_SAMPLE, AuditCode.MISSING_SAMPLE}
    assert result.ok


def test_orphans_are_files_of_no_sample(dataset: AuditedDataset) -> None:
    """A file that readers would take for a sample is an error, any other one a warning, and temporaries are neither."""
    folder = dataset.file(FIRST).parent
    shutil.copy(dataset.file(FIRST), folder / "sim_0_halo_99_rot_0.npz")
    (folder / "notes.txt").touch()
    (folder / f".sim_0_halo_0_rot_0.npz.{'0' * 16}{TEMPORARY_SUFFIX}").touch()
    result = dataset.audit(Depth.KNOWN)
    assert [(f.code, f.severity, f.subject) for f in result.findings] == [
        (AuditCode.ORPHAN, Severity.ERROR, "train/sim_0/sim_0_halo_99_rot_0.npz"),
        (AuditCode.ORPHAN, Severity.WARNING, "train/sim_0/notes.txt"),
    ]


def test_a_link_to_elsewhere_is_not_followed(dataset: AuditedDataset, tmp_path: Path) -> None:
    """A folder that is a link leads nowhere: the link is an orphan, and what lies behind it is not looked at."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "sim_9_halo_0_rot_0.npz").touch()
    (dataset.root / "train" / "sim_9").symlink_to(tmp_path / "elsewhere")
    assert dataset.found(Depth.KNOWN) == {"orphan": {"train/sim_9"}}


def test_a_duplicate_row_is_named_once(dataset: AuditedDataset) -> None:
    """A sample that is listed twice is one finding, and no other check stumbles over it."""
    dataset.append_rows(dataset.rows.filter(pl.col("sample_id") == FIRST))
    assert dataset.found(Depth.KNOWN) == dataset.found() == {"duplicate_sample": {FIRST}}


def test_a_folder_that_was_moved_across_the_split_is_misplaced(dataset: AuditedDataset) -> None:
    """A test simulation's files under train/ are misplaced, with the place where they are, not missing."""
    (dataset.root / "test" / "sim_3").rename(dataset.root / "train" / "sim_3")
    assert dataset.found(Depth.KNOWN) == {"misplaced_file": of_simulation(dataset, TEST_SIMULATION)}
    finding = dataset.audit(Depth.KNOWN).findings[0]
    assert finding.found == "train/sim_3/sim_3_halo_0_rot_0.npz"


@pytest.mark.parametrize("whole", [True, False])
def test_rows_that_were_moved_across_the_split_leak(dataset: AuditedDataset, whole: bool) -> None:
    """A simulation recorded in the wrong split is named, and if it is recorded in both, it leaks."""
    where = f"simulation = '{TEST_SIMULATION}'" + ("" if whole else " AND rotation = 0")
    moved = of_simulation(dataset, TEST_SIMULATION)
    if not whole:
        moved = {name for name in moved if name.endswith("_rot_0")}
    for sample_id in moved:
        path = dataset.row(sample_id)["path"].replace("test/", "train/")
        dataset.update_rows(f"sample_id = '{sample_id}'", path=path)
    dataset.update_rows(where, split="train")
    expected = {"wrong_split": {TEST_SIMULATION}, "misplaced_file": moved}
    assert dataset.found(Depth.KNOWN) == expected | ({} if whole else {"leak": {TEST_SIMULATION}})


def test_a_wrong_path_is_named(dataset: AuditedDataset) -> None:
    """A row with another sample's path has the wrong one, and both rows share it."""
    dataset.update_rows(f"sample_id = '{SECOND}'", path=dataset.row(FIRST)["path"])
    found = dataset.found(Depth.KNOWN)
    assert (found["wrong_path"], found["duplicate_path"]) == ({SECOND}, {FIRST})


def test_a_copy_of_a_sample_is_named_by_its_digest(dataset: AuditedDataset) -> None:
    """Two samples with the same bytes are named; when read, the copy's arrays contradict its row."""
    copied, other = dataset.row(FIRST), "SB35_1_halo_0_rot_0"
    shutil.copy(dataset.file(FIRST), dataset.file(other))
    dataset.update_rows(f"sample_id = '{other}'", bytes=copied["bytes"], sha256=copied["sha256"])
    assert dataset.found(Depth.KNOWN) == {"duplicate_content": {FIRST}}
    assert dataset.found()["row_disagrees"] == {other}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"seed_entropy": "1,2,3,4"}, "wrong_seed"),
        ({"quaternion_w": 1.0, "quaternion_x": 0.0, "quaternion_y": 0.0, "quaternion_z": 0.0}, "wrong_orientation"),
        ({"halo_mass": 1.234e13}, "wrong_halo"),
        ({"halo_center_x": 1.0}, "wrong_halo"),
        ({"halo": 77}, "wrong_halo"),
        ({"stratum": "(1e+12, 1e+13]"}, "wrong_stratum"),
        ({"config_digest": "0" * 64}, "other_configuration"),
        ({"mass_condition": 1e9}, "implausible_mass"),
        ({"mass_large_scale_1": 1e9}, "implausible_mass"),
        ({"mass_target_gas": -1.0}, "schema"),
        ({"sha256": "none"}, "schema"),
        ({"halo_mass": 1e17}, "implausible_mass"),
    ],
)
def test_a_changed_value_is_named(dataset: AuditedDataset, change: dict, code: str) -> None:
    """A row in which one value was changed is named by the check that this value belongs to."""
    dataset.update_rows(f"sample_id = '{FIRST}'", **change)
    assert FIRST in dataset.found(Depth.KNOWN)[code]


def test_schema_findings_have_row_and_value(dataset: AuditedDataset) -> None:
    """What a schema finds comes as findings, one for each row, with what it found there."""
    dataset.update_rows("sample_id LIKE 'SB35_1_halo_0%'", bytes=-5)
    findings = [f for f in dataset.audit(Depth.KNOWN).findings if f.code is AuditCode.SCHEMA]
    assert len(findings) == 10
    assert {finding.found for finding in findings} == {"-5"}
    assert all(finding.subject.startswith("SB35_1_halo_0") for finding in findings)


def test_a_table_without_a_column_ends_the_audit_with_a_finding(dataset: AuditedDataset) -> None:
    """Where a column is missing, that is the one finding, and every other check is said not to be made."""
    table = dataset.root / "manifest" / "samples"
    rows = dataset.rows.drop("stratum")
    shutil.rmtree(table)
    dataset.append_rows(rows)
    result = dataset.audit()
    assert [(f.code, f.subject, f.found) for f in result.findings] == [
        (AuditCode.SCHEMA, "table samples", "no column stratum")
    ]
    assert result.checks[-1].passed is None


def test_counts_that_do_not_add_up_are_told_apart(dataset: AuditedDataset) -> None:
    """More samples than recorded are what a killed run leaves, a warning; so is a simulation without an attempt."""
    dataset.update_rows("simulation = 'SB35_0'", table="simulations", n_committed=19)
    dataset.delete_rows("simulation = 'SB35_1'", table="simulations")
    result = dataset.audit(Depth.KNOWN)
    assert {(f.code, f.severity, f.subject) for f in result.findings} >= {
        (AuditCode.WRONG_COUNT, Severity.WARNING, "SB35_0"),
        (AuditCode.NO_ATTEMPT, Severity.WARNING, "SB35_1"),
    }
    assert result.ok


def test_a_blocked_simulation_is_a_warning(dataset: AuditedDataset) -> None:
    """A simulation whose last attempt was blocked is named with the reason."""
    dataset.update_rows("simulation = 'SB35_2'", table="simulations", status="blocked", message="its snapshot is gone")
    (finding,) = [f for f in dataset.audit(Depth.KNOWN).findings if f.code is AuditCode.UNSETTLED]
    assert (finding.subject, finding.severity, finding.found) == (
        "SB35_2",
        Severity.WARNING,
        "blocked: its snapshot is gone",
    )


def test_simulations_of_another_set_are_unknown(dataset: AuditedDataset) -> None:
    """Rows of a simulation that the set's names exclude are named, and other checks go on."""
    sample_id = pl.concat_str(pl.lit("LH_0_halo_"), "halo", pl.lit("_rot_"), "rotation")
    rows = dataset.rows.filter(pl.col("simulation") == "SB35_0")
    dataset.append_rows(rows.with_columns(simulation=pl.lit("LH_0"), sample_id=sample_id))
    found = dataset.found(Depth.KNOWN)
    assert found["unknown_simulation"] == {"LH_0"}
    assert len(found["duplicate_path"]) == 20


def test_a_replaced_catalogue_makes_samples_stale(dataset: AuditedDataset) -> None:
    """Samples of a simulation whose catalogue was replaced are stale, and not accused of having a wrong halo."""
    (path,) = (dataset.config.catalogue_base / "SB35_1").rglob("*.hdf5")
    with h5py.File(path, "r+") as file:
        file["Group/GroupPos"][...] = np.asarray(file["Group/GroupPos"]) * 0.999
    assert dataset.found(Depth.KNOWN) == {"stale": {"SB35_1"}}
    result = dataset.audit(Depth.KNOWN)
    assert dict(result.simulations.select("simulation", "stale").rows())["SB35_1"] == 20
    assert "catalogue" in result.findings[0].found


def test_samples_that_were_not_made_yet_are_a_warning(dataset: AuditedDataset) -> None:
    """More orientations than were made are missing, by simulation; a data set that is not complete is sound."""
    text = layout_of(dataset.config).configuration_file.read_text()
    layout_of(dataset.config).configuration_file.write_text(text.replace("rotations: 10", "rotations: 12"))
    result = dataset.audit(Depth.KNOWN)
    assert {(f.code, f.subject, f.found) for f in result.findings} == {
        (AuditCode.MISSING_SAMPLE, f"SB35_{number}", "4 of them missing") for number in range(4)
    }
    assert result.ok
    (check,) = [check for check in result.checks if check.findings]
    assert (check.name, check.outcome, check.errors) == ("every planned sample exists", Outcome.WARNINGS, 0)
    dataset.file(FIRST).unlink()
    outcomes = {check.name: check.outcome for check in dataset.audit(Depth.KNOWN).checks if check.findings}
    assert outcomes == {"every planned sample exists": Outcome.WARNINGS, "every sample's file is there": Outcome.FAILED}


def test_without_the_suite_the_rest_is_audited(dataset: AuditedDataset) -> None:
    """Where the suite's disk is away, the checks that need it say so, and the others are made."""
    (dataset.folder / "suite").rename(dataset.folder / "away")
    result = dataset.audit()
    assert result.ok
    undone = {check.name: check.detail for check in result.checks if check.passed is None}
    assert "cannot list the folder" in undone["every planned sample exists"]
    assert "samples are as they would be made today" in undone
    assert "haloes have the mass and centre that the catalogue gives them" in undone
    assert result.simulations["planned"].null_count() == 4
    assert result.halo_masses.is_empty()
    dataset.delete_rows(f"sample_id = '{FIRST}'")
    assert dataset.found(Depth.KNOWN) == {"unrecorded_sample": {FIRST}, "wrong_count": {"SB35_0"}}


def test_one_unreadable_catalogue_hides_nothing_else(dataset: AuditedDataset) -> None:
    """A simulation whose catalogue is damaged is left out of the checks that need it, and counted."""
    for path in (dataset.config.catalogue_base / "SB35_1").rglob("*.hdf5"):
        path.write_bytes(b"nothing")
    dataset.update_rows(f"sample_id = '{FIRST}'", halo_center_x=1.0)
    result = dataset.audit(Depth.KNOWN)
    assert result.counts[AuditCode.WRONG_HALO] == 1
    (check,) = [check for check in result.checks if check.name == "every planned sample exists"]
    assert "the catalogues of 1 simulations cannot be read" in check.detail


def test_an_earlier_version_is_audited_by_its_own_rows(
    tmp_path: Path, config_of: Callable[..., DatasetConfig], mock_suite: Callable[..., object]
) -> None:
    """Files of later samples are no orphans of an earlier version, and damage of the latest does not concern it."""
    suite = mock_suite(simulations=2, particles_per_side=8, halos_per_simulation=1)
    config = config_of(suite, output_root=tmp_path / "set", resolution=16, strata=[{"rotations": 2}])
    make(config, ["SB35_0"])
    make(config, ["SB35_1"], "second")
    dataset = AuditedDataset(tmp_path, config)
    assert manifest_of(config).version == 1
    dataset.file("SB35_1_halo_0_rot_0").unlink()
    earlier = dataset.audit(version=resolve_version(layout_of(config), 0))
    assert (earlier.version, earlier.samples.height, earlier.ok) == (0, 2, True)
    assert earlier.counts == {}
    assert dataset.found() == {"missing_file": {"SB35_1_halo_0_rot_0"}}


def test_samples_that_were_made_anew_are_still_those_of_the_earlier_version(dataset: AuditedDataset) -> None:
    """After a refresh, the version before it is audited on the files that were kept, and the new one on its own."""
    (path,) = sorted((dataset.config.hydro_base / "SB35_0").rglob("*.hdf5"))[:1]
    with h5py.File(path, "r+") as file:
        masses = file["Header"].attrs["MassTable"]
        file["Header"].attrs.modify("MassTable", masses * 1.001)
    assert dataset.found() == {"stale": {"SB35_0"}}
    config = dataset.config
    workload = plan_workload(config, open_dataset(layout_of(config), config, refresh=True), refresh=True)
    screened = screen_block(workload.outstanding, config, read_parameter_table(find_parameter_file(config)))
    plan = plan_block(screened, config, "again", 0)
    assert plan is not None
    results = {result.simulation: result for result in project_block(MPI.COMM_SELF, plan, lambda progress: None)}
    outcomes = block_outcomes(layout_of(config), screened, plan, results)
    commit_outcomes(open_dataset(layout_of(config), config, refresh=True), config, outcomes, "again")
    assert dataset.found() == {}
    earlier = dataset.audit(version=resolve_version(layout_of(config), 0))
    assert earlier.counts == {}
    (read,) = [check.detail for check in earlier.checks if check.name == "files have the recorded SHA-256"]
    assert read == "80 files read"


def test_what_other_settings_call_for_is_not_known(dataset: AuditedDataset) -> None:
    """A sample of other settings is named for that, and not held against the settings on record."""
    layout = layout_of(dataset.config)
    changed = dataset.config.model_copy(update={"root_seed": 7, "resolution": 32})
    layout.configuration_file.write_text(changed.to_yaml())
    assert set(dataset.found()) == {"other_configuration", "stale"}


def test_every_query_of_a_finding_can_be_asked(dataset: AuditedDataset) -> None:
    """The SQL that a finding names is answered by the data set, with rows wherever it is about rows."""
    dataset.file(FIRST).unlink()
    dataset.append_rows(dataset.rows.filter(pl.col("sample_id") == SECOND))
    dataset.update_rows("simulation = 'SB35_3' AND rotation = 0", split="train")
    dataset.update_rows("sample_id LIKE 'SB35_1%'", sha256="a" * 64, path="train/sim_1/x.npz")
    dataset.update_rows("simulation = 'SB35_2'", table="simulations", n_committed=50)
    findings = dataset.audit(Depth.KNOWN).findings
    assert len({finding.code for finding in findings}) >= 8
    for text in {finding.query for finding in findings if finding.query}:
        assert query(layout_of(dataset.config), text).height, text


def test_findings_beyond_the_limit_are_counted() -> None:
    """Of very many things that are wrong, the first are spelt out, and all of them are counted and listed."""
    many = MOST_FINDINGS + 500
    rows = pl.DataFrame({"subject": [f"s{number}" for number in range(many)]}).with_columns(
        simulation=pl.lit("SB35_0"), expected=pl.lit("a"), found=pl.lit("b")
    )
    checklist = Checklist()
    for _ in range(2):  # which are two checks that find the same kind of thing
        checklist.record("all is well", "", Offenders(AuditCode.ORPHAN, Severity.ERROR, rows, "Look."))
    summary = checklist.summary
    assert (len(summary["findings"]), summary["counts"], summary["errors"]) == (
        MOST_FINDINGS,
        {AuditCode.ORPHAN: 2 * many},
        2 * many,
    )
    assert [check.findings for check in summary["checks"]] == [many, many]
    assert summary["offences"].height == 2 * many
    unlimited = Checklist(most_findings=10 * many)
    unlimited.record("all is well", "", Offenders(AuditCode.ORPHAN, Severity.ERROR, rows, "Look."))
    assert len(unlimited.summary["findings"]) == many


def test_a_folder_without_a_data_set_is_refused(tmp_path: Path) -> None:
    """What is no data set cannot be audited, and the message says what it lacks."""
    config = DatasetConfig(dmo_base=tmp_path, hydro_base=tmp_path, catalogue_base=tmp_path, output_root=tmp_path)
    with pytest.raises(ManifestError, match=r"dataset\.yaml"):
        AuditedDataset(tmp_path, config).audit()
