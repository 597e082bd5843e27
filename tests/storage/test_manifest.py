import threading
from collections.abc import Callable
from datetime import timedelta

import polars as pl
import pytest
from deltalake import DeltaTable

from bind_core.config import RotationPolicy, Stratum
from storage import manifest as manifest_module
from storage.columns import (
    SAMPLES,
    SIMULATIONS,
    ManifestError,
    SimulationStatus,
)
from storage.layout import DatasetLayout
from storage.manifest import (
    ConfigurationMismatchError,
    Manifest,
    layout_at,
    open_dataset,
    recorded_configuration,
)
from storage.schemas import validate_rows


def test_a_new_data_set_is_empty(dataset) -> None:
    """Before the first commit there are no rows, but the columns and types are those of the tables."""
    manifest = dataset.open()
    assert not manifest.exists()
    assert manifest.samples().is_empty()
    assert dict(manifest.samples().schema) == SAMPLES.schema()
    assert dict(manifest.simulations().schema) == SIMULATIONS.schema()
    assert (manifest.version, manifest.versions) == (-1, [])
    assert not dataset.root.exists()


def test_committed_rows_come_back(dataset) -> None:
    """What was committed is read back with every value, by anyone who opens the tables."""
    rows = dataset.sample_rows("SB35_0", halos=2)
    version = dataset.open().commit(rows, dataset.simulation_rows("SB35_0"), "run")
    manifest = Manifest(DatasetLayout(dataset.root, "SB35"))
    assert manifest.exists()
    assert version == manifest.version == 0
    found = manifest.samples()
    assert found.select(rows.columns).rows() == rows.rows()
    assert found["seed_entropy"][0] == f"1993,{2**128 - 1},0,0"
    assert dict(found.schema) == SAMPLES.schema(n_context=3)
    assert set(manifest.samples()["sample_id"]) == set(rows["sample_id"])
    assert manifest.simulations()["status"].to_list() == [SimulationStatus.COMPLETE]


def test_order_of_commits_does_not_show(dataset) -> None:
    """Samples are listed by simulation, halo and rotation, whichever block came first."""
    dataset.commit("SB35_3")
    dataset.commit("SB35_0", "SB35_1")
    names = dataset.open().samples()["sample_id"].to_list()
    assert names == [f"SB35_{i}_halo_0_rot_{rotation}" for i in (0, 1, 3) for rotation in (0, 1)]


def test_simulations_without_samples_are_recorded(dataset) -> None:
    """A block of blocked simulations commits its findings, although there is no sample."""
    rows = dataset.simulation_rows(
        "SB35_0", status=SimulationStatus.BLOCKED, n_halos=None, findings='[{"code": "missing"}]'
    )
    assert dataset.open().commit(None, rows, "run") == -1
    found = dataset.open().latest_simulations().row(0, named=True)
    assert (found["status"], found["findings"], found["n_halos"]) == ("blocked", '[{"code": "missing"}]', None)
    assert dataset.open().exists()


def test_the_newest_attempt_counts(dataset) -> None:
    """Of several attempts at a simulation, the latest one is its state, also when it was committed out of order."""
    manifest = dataset.open()
    dataset.commit("SB35_1")
    first = dataset.simulation_rows("SB35_0", "SB35_1", status="failed")
    second = dataset.simulation_rows("SB35_0", status="no_work")
    manifest.commit(None, second, "run")
    manifest.commit(None, first, "run")
    latest = manifest.latest_simulations()
    assert dict(zip(latest["simulation"], latest["status"], strict=True)) == {"SB35_0": "no_work", "SB35_1": "failed"}
    assert manifest.simulations().height == 4


def test_a_sample_exists_once(dataset) -> None:
    """Ids that are in the manifest already are refused by name, and nothing of that commit is written."""
    dataset.commit("SB35_0", "SB35_2", "SB35_3")
    manifest = dataset.open()
    again = pl.concat([dataset.sample_rows("SB35_0", rotations=3), dataset.sample_rows("SB35_1")])
    with pytest.raises(ManifestError, match=r"2 of 5 samples.*SB35_0_halo_0_rot_0, SB35_0_halo_0_rot_1"):
        manifest.commit(again, dataset.simulation_rows("SB35_0", "SB35_1"), "run")
    assert manifest.samples().height == 6
    assert manifest.simulations().height == 3


BROKEN: list[tuple[pl.Expr, str]] = [
    (pl.lit("SB35_0_halo_0_rot_0").alias("sample_id"), "must be unique"),
    (pl.lit("SB35_9").alias("simulation"), "must be <simulation>_halo_<halo>_rot_<rotation>"),
    (pl.col("quaternion_w") * 0, "must be of unit norm"),
    (pl.col("halo_mass") * 0, "halo_mass = 0.0: must be greater_than"),
    (pl.col("mass_large_scale_1") * -1, "mass_large_scale_1 = -"),
    (pl.col("halo_center_y") / 0, "every number must be finite"),
    (pl.lit(float("nan")).alias("mass_target_gas"), "mass_target_gas"),
    (pl.lit("validation").alias("split"), "split = validation"),
    (pl.lit("train/../../x.npz").alias("path"), "not lead out of the data set"),
    (pl.lit("test/sim_0/x.npz").alias("path"), "must lie in the folder of its split"),
    (pl.lit("/etc/x.npz").alias("path"), "path = /etc/x.npz"),
    (pl.lit("abc").alias("sha256"), "sha256 = abc"),
    (pl.lit("1,x").alias("seed_entropy"), "seed_entropy = 1,x"),
    (pl.lit(None, pl.String).alias("stratum"), "must be given"),
    (pl.lit("many").alias("bytes"), "wrong type"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_rows_that_break_the_schema_are_refused(dataset, change: pl.Expr, message: str) -> None:
    """A row with an impossible value is refused with its column and value, and nothing is written."""
    rows = dataset.sample_rows("SB35_0").with_columns(change)
    with pytest.raises(ManifestError) as caught:
        dataset.open().commit(rows, dataset.simulation_rows("SB35_0"), "run")
    assert message in str(caught.value)
    assert not dataset.open().exists()


def test_all_failures_are_reported_at_once(dataset) -> None:
    """Two broken columns and a broken relation are all in one message, with the rows' names."""
    rows = dataset.sample_rows("SB35_0").with_columns(bytes=0, sha256=pl.lit("x"), quaternion_w=2.0)
    with pytest.raises(ManifestError) as caught:
        validate_rows(rows, SAMPLES)
    for part in ("bytes = 0", "sha256 = x", "unit norm", "row 1 (SB35_0_halo_0_rot_1)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "done"}, "status = done"),
        ({"findings": "{}"}, "must be JSON lists"),
        ({"n_planned": -1}, "n_planned = -1"),
        ({"config_digest": "0"}, "config_digest = 0"),
    ],
)
def test_simulations_that_break_the_schema_are_refused(dataset, changes, message: str) -> None:
    """An unknown status, findings that are no list and negative counts are refused."""
    with pytest.raises(ManifestError, match=message):
        dataset.open().commit(None, dataset.simulation_rows("SB35_0", **changes), "run")


def test_missing_and_unknown_columns_are_named(dataset) -> None:
    """Rows that lack a column, or have one that the table does not know, are refused with both names."""
    rows = dataset.sample_rows("SB35_0").drop("sha256").with_columns(colour=pl.lit("red"))
    with pytest.raises(ManifestError) as caught:
        dataset.open().commit(rows, dataset.simulation_rows("SB35_0"), "run")
    assert "missing: sha256" in str(caught.value)
    assert "unknown: colour" in str(caught.value)


def test_rows_of_another_run_or_configuration_are_refused(dataset) -> None:
    """A commit holds rows of its own run and configuration only."""
    rows, simulations = dataset.sample_rows("SB35_0"), dataset.simulation_rows("SB35_0")
    with pytest.raises(ManifestError, match="another run_id cannot be committed: expected other, found run"):
        dataset.open().commit(rows, simulations, "other")
    with pytest.raises(ManifestError, match="another config_digest"):
        dataset.open().commit(rows.with_columns(config_digest=pl.lit("0" * 64)), simulations, "run")


def test_a_manifest_opened_for_reading_does_not_commit(dataset) -> None:
    """Without a configuration, committing is refused."""
    with pytest.raises(ManifestError, match="open_dataset"):
        Manifest(dataset.layout).commit(None, dataset.simulation_rows("SB35_0"), "run")


def test_earlier_versions_are_answered(dataset) -> None:
    """Each commit is a version that says who made it and when, and can be read after later ones."""
    assert [dataset.commit("SB35_0", run_id="a"), dataset.commit("SB35_1", run_id="b")] == [0, 1]
    manifest = dataset.open()
    assert set(manifest.samples(version=0)["simulation"]) == {"SB35_0"}
    assert set(manifest.samples(version=1)["simulation"]) == {"SB35_0", "SB35_1"}
    assert manifest.simulations(version=0)["simulation"].to_list() == ["SB35_0"]
    assert [(v.version, v.run_id, v.samples_added) for v in manifest.versions] == [(0, "a", 2), (1, "b", 2)]
    assert timedelta(0) <= manifest.versions[1].committed_at - manifest.versions[0].committed_at < timedelta(minutes=5)
    with pytest.raises(ManifestError, match="no version 7; its versions are 0 to 1"):
        manifest.samples(version=7)


def test_a_version_is_asked_for_before_there_is_any(dataset) -> None:
    """Asking an empty data set for a version says that nothing was committed."""
    with pytest.raises(ManifestError, match="nothing was committed"):
        dataset.open().samples(version=0)


def test_versions_are_kept_for_years(dataset) -> None:
    """The tables are told not to forget their versions, which Delta does after 30 days by itself."""
    dataset.commit("SB35_0")
    for table in (dataset.layout.samples_table, dataset.layout.simulations_table):
        settings = DeltaTable(table).metadata().configuration
        assert settings["delta.enableExpiredLogCleanup"] == "false"
        assert settings["delta.logRetentionDuration"] == "interval 5200 weeks"


def test_commits_at_the_same_time_all_arrive(dataset) -> None:
    """Four writers that commit different simulations at once lose no row."""
    dataset.commit("SB35_0")
    blocks = [(dataset.sample_rows(f"SB35_{i}"), dataset.simulation_rows(f"SB35_{i}")) for i in range(1, 9)]
    failures: list[Exception] = []

    def commit(mine: list[tuple[pl.DataFrame, pl.DataFrame]]) -> None:
        try:
            for samples, simulations in mine:
                dataset.open().commit(samples, simulations, "run")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=commit, args=(blocks[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert dataset.open().samples().height == 18
    assert dataset.open().latest_simulations().height == 9


def test_a_crash_between_the_tables_leaves_samples_that_exist(dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a commit dies after its samples, they exist, and the next run records their simulation."""
    append = manifest_module.append_rows

    def die(path, rows, metadata, version=None) -> None:
        if path == dataset.layout.simulations_table:
            raise KeyboardInterrupt
        append(path, rows, metadata, version)

    monkeypatch.setattr(manifest_module, "append_rows", die)
    with pytest.raises(KeyboardInterrupt):
        dataset.commit("SB35_0")
    monkeypatch.undo()
    manifest = dataset.open()
    assert manifest.exists()
    assert manifest.samples().height == 2
    assert manifest.simulations().is_empty()
    manifest.commit(None, dataset.simulation_rows("SB35_0"), "run")
    assert manifest.latest_simulations()["status"].to_list() == ["complete"]


def test_a_lost_file_of_the_table_is_an_error_of_ours(dataset) -> None:
    """A table with a missing file says so instead of returning fewer rows."""
    dataset.commit("SB35_0")
    for file in dataset.layout.samples_table.glob("*.parquet"):
        file.unlink()
    with pytest.raises(ManifestError, match="Cannot read the table"):
        dataset.open().samples()


def test_the_configuration_is_recorded_with_the_first_commit(dataset) -> None:
    """dataset.yaml appears with the first commit and reads back as the configuration."""
    manifest = dataset.open()
    assert recorded_configuration(dataset.root) is None
    manifest.commit(None, dataset.simulation_rows("SB35_0"), "run")
    assert recorded_configuration(dataset.root) == dataset.config
    assert layout_at(dataset.root) == dataset.layout


def test_another_configuration_is_refused_with_the_differences(dataset) -> None:
    """Settings that decide what is in a sample must be the recorded ones; each difference is named with both values."""
    dataset.commit("SB35_0")
    with pytest.raises(ConfigurationMismatchError) as caught:
        dataset.open(resolution=32, rotations=RotationPolicy.EULER)
    message = str(caught.value)
    assert "resolution: the data set has 16, this run has 32" in message
    assert "rotations: the data set has haar, this run has euler" in message
    assert "depth" not in message
    assert str(dataset.layout.configuration_file) in message


def test_paths_strata_and_workers_may_change(dataset, tmp_path) -> None:
    """Other paths, more strata and more ranks continue the data set, and are what is recorded from then on."""
    dataset.commit("SB35_0")
    strata = (Stratum(), Stratum(min_mass=1e12, max_mass=1e13, rotations=1))
    manifest = dataset.open(dmo_base=tmp_path / "elsewhere", strata=strata, ranks=16)
    manifest.commit(dataset.sample_rows("SB35_1"), dataset.simulation_rows("SB35_1"), "run")
    recorded = recorded_configuration(dataset.root)
    assert recorded is not None
    assert (recorded.strata, recorded.ranks, recorded.dmo_base) == (strata, 16, tmp_path / "elsewhere")


def test_a_lost_configuration_does_not_open_the_door(dataset) -> None:
    """Without dataset.yaml, the digests in the manifest still refuse another configuration, and accept the same."""
    dataset.commit("SB35_0")
    dataset.layout.configuration_file.unlink()
    assert dataset.open().exists()
    with pytest.raises(ConfigurationMismatchError, match="missing"):
        dataset.open(root_seed=7)


def test_a_folder_without_a_data_set_is_named(tmp_path) -> None:
    """Asking for the data set of any other folder says what to give instead."""
    with pytest.raises(ManifestError, match="no data set in"):
        layout_at(tmp_path)


def test_every_status_is_explained() -> None:
    """The statuses are exactly those that users of the manifest know."""
    assert set(SimulationStatus) == {"planned", "blocked", "failed", "partial", "complete", "no_work", "stale"}


def test_opening_writes_nothing(dataset) -> None:
    """Looking at a data set that does not exist yet leaves no trace."""
    opened: Callable[..., Manifest] = open_dataset
    opened(dataset.layout, dataset.config).samples()
    assert not dataset.root.exists()


@pytest.mark.parametrize("name", ["with blanks", "50% größer", "a+b&c=d", "*'~"])
def test_a_data_set_may_have_an_unusual_path(dataset_at, name: str) -> None:
    """Blanks, umlauts and signs in the root's path change no answer."""
    dataset = dataset_at(name)
    versions = [dataset.commit(f"SB35_{i}") for i in range(3)]
    manifest = dataset.open()
    assert manifest.samples()["sample_id"].n_unique() == manifest.samples().height == 6
    assert [manifest.samples(version).height for version in versions] == [2, 4, 6]
    assert len(manifest.versions) == 3
