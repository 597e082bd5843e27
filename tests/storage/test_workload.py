"""What remains to be done, by what the catalogues ask for and what the manifest has."""

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from block_runs import make, manifest_of, project, record, times, work_of, workload_of

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError
from storage import manifest as manifest_module
from storage.columns import SimulationStatus
from storage.manifest import ManifestError
from storage.mock_suite import Defect, MockSuite, write_mock_suite
from storage.workload import Reason, compare

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    return write_mock_suite(
        tmp_path_factory.mktemp("suite"),
        simulations=3,
        particles_per_side=8,
        halos_per_simulation=2,
        defects={"SB35_2": [Defect.EMPTY_CATALOGUE]},
    )


@pytest.fixture
def config(suite: MockSuite, config_of: Callable[..., DatasetConfig], tmp_path: Path) -> DatasetConfig:
    return config_of(suite, output_root=tmp_path, resolution=16, strata=[{"rotations": 2}])


def with_strata(config: DatasetConfig, *strata: dict) -> DatasetConfig:
    return DatasetConfig.from_values(config.model_dump() | {"strata": strata})


def test_work_is_what_was_predicted_and_not_committed(config: DatasetConfig) -> None:
    """A fresh data set lacks every predicted sample; a made simulation lacks none, and the others are untouched."""
    fresh = workload_of(config)
    assert [work.reason for work in fresh.simulations] == [Reason.SAMPLES_MISSING] * 2 + [Reason.NOT_RECORDED]
    assert fresh.samples == sum(len(work.predicted) for work in fresh.simulations) == 8
    make(config, ["SB35_0"])
    after = workload_of(config)
    assert [work.files.name for work in after.outstanding] == ["SB35_1", "SB35_2"]
    assert after.simulations[0].reason is Reason.NOTHING_TO_DO
    assert after.simulations[0].predicted == fresh.simulations[0].predicted
    assert after.samples == 4


def test_more_rotations_and_strata_miss_only_what_is_new(config: DatasetConfig) -> None:
    """After an extension, the missing samples are those of the new rotations and of the new stratum alone."""
    make(config, ["SB35_0"])
    lighter = {"min_mass": 1e12, "max_mass": 1e13, "rotations": 1}
    work = work_of(with_strata(config, {"rotations": 3}, lighter), "SB35_0")
    massive = [target for target in work.to_make if target.halo_mass > 1e13]
    light = [target for target in work.to_make if target.halo_mass <= 1e13]
    assert {target.rotation for target in massive} == {2}
    assert len(massive) == 2
    assert light and {target.stratum for target in light} == {"(1e+12, 1e+13]"}
    assert len(work.predicted) == len(work.missing) + 4


def test_asking_for_less_is_nothing_to_do(config: DatasetConfig) -> None:
    """Fewer rotations than were made leave nothing to do, and no committed sample is in question."""
    make(config, ["SB35_0"])
    work = work_of(with_strata(config, {"rotations": 1}), "SB35_0")
    assert (len(work.predicted), work.missing, work.reason) == (2, frozenset(), Reason.NOTHING_TO_DO)


@pytest.mark.parametrize(
    ("name", "status"), [("SB35_0", SimulationStatus.COMPLETE), ("SB35_2", SimulationStatus.NO_WORK)]
)
def test_a_kill_between_the_two_tables_is_completed_without_remaking(
    config: DatasetConfig, monkeypatch: pytest.MonkeyPatch, name: str, status: SimulationStatus
) -> None:
    """Samples that were committed without their simulation's row are kept, and the next run records the row."""
    block = project(config, [name])

    class KilledError(Exception):
        pass

    append = manifest_module.append_rows

    def killed_before_the_second_table(path: Path, *rest: object) -> None:
        if path.name == "simulations":
            raise KilledError
        append(path, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, "append_rows", killed_before_the_second_table)
        with pytest.raises(KilledError):
            record(config, block)
    before = times(config), manifest_of(config).version
    work = work_of(config, name)
    assert (work.missing, work.reason, work.outstanding) == (frozenset(), Reason.NOT_RECORDED, True)
    again = project(config, [name], "second")
    assert again.plan is None
    assert record(config, again, "second") == {name: status}
    assert (times(config), manifest_of(config).version) == before
    assert work_of(config, name).reason is Reason.NOTHING_TO_DO
    row = manifest_of(config).latest_simulations().row(0, named=True)
    assert (row["run_id"], row["n_planned"], row["n_committed"]) == ("second", 0, len(work.predicted))


def test_a_failure_recorded_after_the_samples_is_set_right(config: DatasetConfig) -> None:
    """A simulation whose newest status is no good one, though all its samples exist, is part of the next run."""
    make(config, ["SB35_0"])
    manifest = manifest_of(config)
    later = pl.col("recorded_at") + pl.duration(microseconds=1)
    row = manifest.latest_simulations().with_columns(later, status=pl.lit("failed"))
    manifest.commit(None, row, "run")
    assert work_of(config, "SB35_0").reason is Reason.NOT_RECORDED
    assert make(config, ["SB35_0"], "second") == {"SB35_0": SimulationStatus.COMPLETE}


@pytest.mark.parametrize("defect", [Defect.MISSING_CATALOGUE, Defect.MISSING_HALO_MASSES, "not HDF5", "no folder"])
def test_without_catalogue_it_is_not_known_what_there_should_be(
    mock_suite: Callable[..., MockSuite], config_of: Callable[..., DatasetConfig], defect: str
) -> None:
    """A simulation whose catalogue is missing or damaged is part of the run, with no sample predicted."""
    suite = mock_suite(particles_per_side=8, defects={"SB35_0": [defect]} if isinstance(defect, Defect) else {})
    folder = suite.catalogue_base / "SB35_0"
    if defect == "not HDF5":
        for path in folder.rglob("*.hdf5"):
            path.write_bytes(b"nothing")
    if defect == "no folder":
        shutil.rmtree(folder)
    work = work_of(config_of(suite), "SB35_0")
    assert (work.reason, len(work.predicted), work.missing) == (Reason.CATALOGUE_UNREADABLE, 0, frozenset())
    assert work.outstanding


def test_names_come_in_natural_order_and_once(config: DatasetConfig) -> None:
    """Names asked for in any order, some of them twice, are planned in the order of their numbers, each once."""
    workload = workload_of(config, ["SB35_10", "SB35_2", "SB35_10", "SB35_1"])
    assert [work.files.name for work in workload.simulations] == ["SB35_1", "SB35_2", "SB35_10"]


def test_blocks_hold_what_is_outstanding(config: DatasetConfig) -> None:
    """Blocks divide the outstanding simulations in order, and finished ones are in none."""
    make(config, ["SB35_1"])
    blocks = workload_of(config, ["SB35_0", "SB35_1", "SB35_2", "SB35_7"]).blocks(2)
    assert [[work.files.name for work in block] for block in blocks] == [["SB35_0", "SB35_2"], ["SB35_7"]]
    assert workload_of(config, ["SB35_1"]).blocks(2) == []


def test_an_empty_suite_is_said_and_not_taken_for_all_done(config: DatasetConfig, tmp_path: Path) -> None:
    """Base folders without a simulation of the set are an error, which names set and folders."""
    with pytest.raises(ConfigurationError, match="no simulation of set CV"):
        workload_of(config.model_copy(update={"set_name": "CV"}))
    gone = config.model_copy(update={"hydro_base": tmp_path / "gone"})
    with pytest.raises(ConfigurationError, match=r"hydro_base: cannot list the folder .*gone"):
        workload_of(gone)
    with pytest.raises(ConfigurationError, match="CV_0"):
        workload_of(config, ["CV_0"])


def test_what_was_made_can_be_compared_without_the_suite(config: DatasetConfig, tmp_path: Path) -> None:
    """Where the suite's disk is away, comparing takes simulations as absent instead of failing."""
    make(config, ["SB35_0"])
    away = config.model_copy(update=dict.fromkeys(("dmo_base", "hydro_base", "catalogue_base"), tmp_path / "x"))
    (work,) = compare(away, manifest_of(config), ["SB35_0"]).simulations
    assert work.reason is Reason.ABSENT


def test_a_damaged_manifest_is_not_taken_for_an_empty_one(config: DatasetConfig) -> None:
    """If the record cannot be read, planning fails instead of making everything again."""
    make(config, ["SB35_0"])
    for path in manifest_of(config).layout.samples_table.glob("*.parquet"):
        path.unlink()
    with pytest.raises(ManifestError, match="missing or damaged"):
        workload_of(config)
