"""Samples that would come out differently today: found, said why, and made anew only when that is asked for."""

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest
from block_runs import layout_of, make, manifest_of, outcomes_of, project, refresh, times, work_of
from deltalake import write_deltalake

import storage.manifest as manifest_module
from bind_core.config import DatasetConfig
from bind_core.parameters import find_parameter_file, read_parameter_table
from storage import recording, staleness
from storage.blocks import block_outcomes, plan_block, screen_block
from storage.columns import SimulationStatus
from storage.file_listing import unmatched_files
from storage.files import sha256_of
from storage.manifest import ConfigurationMismatchError, open_dataset
from storage.mock_suite import MockSuite
from storage.staleness import Cause
from storage.versions import resolve_version
from storage.workload import Reason, SimulationWork, plan_workload

pytestmark = pytest.mark.mpi


@pytest.fixture
def suite(mock_suite: Callable[..., MockSuite]) -> MockSuite:
    return mock_suite(simulations=2, particles_per_side=8, halos_per_simulation=2)


@pytest.fixture
def config(suite: MockSuite, config_of: Callable[..., DatasetConfig], tmp_path: Path) -> DatasetConfig:
    made = config_of(suite, output_root=tmp_path / "set", resolution=16, strata=[{"rotations": 2}])
    make(made)
    return made


def file_of(base: Path, name: str = "SB35_0") -> Path:
    (path,) = sorted((base / name).rglob("*.hdf5"))[:1]
    return path


def masses_raised(path: Path) -> None:
    """Make a valid file of the same size in which dark matter weighs a little more."""
    with h5py.File(path, "r+") as file:
        table = file["Header"].attrs["MassTable"]
        file["Header"].attrs.modify("MassTable", table * 1.001)


def touch(path: Path) -> None:
    later = path.stat().st_mtime + 100
    os.utime(path, (later, later))


def causes(work: SimulationWork) -> set[Cause]:
    return {cause for group in work.stale for cause in group.causes}


def sound(config: DatasetConfig) -> None:
    """Every row's file is there and as recorded, and nothing else lies about."""
    rows = manifest_of(config).samples()
    root = config.output_root
    assert {path: sha256_of(root / path) for path in rows["path"]} == dict(rows.select("path", "sha256").rows())
    on_disk = {str(path.relative_to(root)) for split in ("train", "test") for path in (root / split).rglob("*.npz")}
    assert on_disk == set(rows["path"])
    assert not layout_of(config).staging_folder.exists()


def test_an_unchanged_suite_is_not_stale(config: DatasetConfig) -> None:
    """Right after a run, and without any change, no sample is stale."""
    work = work_of(config, "SB35_0")
    assert (work.stale, work.reason) == ((), Reason.NOTHING_TO_DO)


def test_a_replaced_snapshot_makes_its_samples_stale_and_no_others(config: DatasetConfig, suite: MockSuite) -> None:
    """Other masses in a file of the same size are found by content; the other simulation is not in question."""
    before = times(config)
    path = file_of(suite.hydro_base)
    size = path.stat().st_size
    masses_raised(path)
    touch(path)
    assert path.stat().st_size == size
    work = work_of(config, "SB35_0")
    assert (causes(work), work.n_stale, work.reason) == ({Cause.INPUT}, 4, Reason.STALE)
    assert path.name in work.explanation
    assert work_of(config, "SB35_1").stale == ()
    assert plan_workload(config, manifest_of(config)).outstanding == ()
    assert times(config) == before


@pytest.mark.parametrize("role", ["dmo_base", "hydro_base", "catalogue_base"])
def test_a_file_that_was_only_touched_is_noted_and_nothing_is_remade(
    config: DatasetConfig, suite: MockSuite, role: str
) -> None:
    """A new time of modification with the same content is recorded by the next run, which makes no sample."""
    before = times(config)
    touch(file_of(getattr(suite, role)))
    work = work_of(config, "SB35_0")
    assert (work.stale, work.reason) == ((), Reason.TOUCHED)
    assert make(config, run_id="other") == {"SB35_0": SimulationStatus.COMPLETE}
    assert work_of(config, "SB35_0").reason is Reason.NOTHING_TO_DO
    assert times(config) == before


def test_a_file_of_another_size_is_changed(config: DatasetConfig, suite: MockSuite) -> None:
    """Bytes added to a snapshot make it another one, whatever they are."""
    with file_of(suite.dmo_base).open("ab") as file:
        file.write(bytes(8))
    assert causes(work_of(config, "SB35_0")) == {Cause.INPUT}


def test_another_row_of_parameters_is_a_changed_input(config: DatasetConfig, suite: MockSuite) -> None:
    """A parameter of one simulation that is corrected makes its samples stale; a new simulation's row makes none."""
    table = suite.parameter_file
    lines = table.read_text().splitlines()
    row = next(line for line in lines if line.split()[0] == "SB35_1")
    table.write_text("\n".join([*lines, row.replace("SB35_1", "SB35_77")]) + "\n")
    assert work_of(config, "SB35_1").stale == ()
    fields = row.split()
    fields[2] = str(float(fields[2]) * 1.01)
    table.write_text("\n".join([" ".join(fields) if line is row else line for line in lines]) + "\n")
    assert causes(work_of(config, "SB35_1")) == {Cause.INPUT}
    assert work_of(config, "SB35_0").stale == ()


def test_inputs_that_were_removed_afterwards_make_nothing_stale(config: DatasetConfig, suite: MockSuite) -> None:
    """Who deletes a snapshot to save space keeps the samples that were made from it."""
    file_of(suite.hydro_base).unlink()
    assert (work_of(config, "SB35_0").stale, work_of(config, "SB35_0").reason) == ((), Reason.NOTHING_TO_DO)


def test_other_settings_and_other_code_make_all_samples_stale(
    config: DatasetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed resolution is refused without a refresh, and shown as the cause with it; likewise newer code."""
    other = config.model_copy(update={"resolution": 8})
    with pytest.raises(ConfigurationMismatchError, match="--refresh"):
        manifest_of(other)
    plan = plan_workload(other, open_dataset(layout_of(other), other, refresh=True), refresh=True)
    assert [causes(work) for work in plan.simulations] == [{Cause.SETTINGS}] * 2
    assert plan.samples == 8
    monkeypatch.setattr(staleness, "OUTPUT_VERSION", 2)
    assert causes(work_of(config, "SB35_0")) == {Cause.CODE}


def test_a_refresh_is_a_new_version_and_the_earlier_one_is_still_there(config: DatasetConfig, suite: MockSuite) -> None:
    """Rows are exchanged in one commit; yesterday's rows are answered, and their files are kept by their digests."""
    manifest = manifest_of(config)
    yesterday, version = manifest.samples(), manifest.version
    masses_raised(file_of(suite.hydro_base))
    touch(file_of(suite.hydro_base))
    assert refresh(config) == {"SB35_0": SimulationStatus.COMPLETE}
    today = manifest.samples()
    sound(config)
    assert today["sample_id"].to_list() == yesterday["sample_id"].to_list()
    changed = today.join(yesterday, on="sample_id").filter(pl.col("sha256") != pl.col("sha256_right"))
    assert set(changed["simulation"]) == {"SB35_0"} and changed.height == 4
    assert set(changed["run_id"]) == {"again"}
    assert manifest.samples(version).equals(yesterday)
    for digest in changed["sha256_right"]:
        assert sha256_of(layout_of(config).superseded_file(digest)) == digest
    (commit,) = [entry for entry in manifest.versions if entry.run_id == "again"]
    assert (commit.action, commit.samples_added, commit.samples_removed) == ("refresh", 4, 4)
    assert commit.user and commit.host and commit.config_digest == config.digest
    assert work_of(config, "SB35_0").reason is Reason.NOTHING_TO_DO


def test_files_of_an_earlier_version_are_those_that_were_kept(config: DatasetConfig, suite: MockSuite) -> None:
    """What was made anew since is looked for where it is kept; once it is lost there, that version alone lacks it."""
    layout, manifest = layout_of(config), manifest_of(config)
    yesterday = resolve_version(layout)
    masses_raised(file_of(suite.hydro_base))
    touch(file_of(suite.hydro_base))
    refresh(config)
    assert unmatched_files(layout, yesterday).sound
    replaced = manifest.samples(yesterday.number).row(0, named=True)
    layout.superseded_file(replaced["sha256"]).unlink()
    assert unmatched_files(layout, yesterday).lost == {"SB35_0": (replaced["path"],)}
    assert unmatched_files(layout).sound
    others = manifest.samples(yesterday.number).filter(simulation="SB35_1")["path"]
    (config.output_root / others[0]).unlink()
    assert unmatched_files(layout, yesterday).lost == {"SB35_0": (replaced["path"],), "SB35_1": (others[0],)}


def test_a_refresh_with_other_settings_goes_on_after_an_interruption(config: DatasetConfig) -> None:
    """With one simulation refreshed, the other is still stale under the new settings, and is made by the next run."""
    other = config.model_copy(update={"resolution": 8})
    refresh(other, ["SB35_0"], "first")
    assert [causes(work_of(other, name)) for name in ("SB35_0", "SB35_1")] == [set(), {Cause.SETTINGS}]
    refresh(other, None, "second")
    sound(other)
    assert set(manifest_of(other).samples()["config_digest"]) == {other.digest}


def test_samples_that_are_not_predicted_any_more_go_with_a_refresh(config: DatasetConfig, suite: MockSuite) -> None:
    """After the catalogue lost a halo, a refresh removes its rows, and keeps its files for the earlier version."""
    with h5py.File(file_of(suite.catalogue_base), "r+") as file:
        masses = file["Group/Group_M_Crit200"][...]
        gone = int(np.flatnonzero(masses > 1e3)[-1])
        masses[gone] = 1.0
        file["Group/Group_M_Crit200"][...] = masses
    touch(file_of(suite.catalogue_base))
    old = manifest_of(config).samples().filter(simulation="SB35_0", halo=gone)
    assert old.height == 2
    refresh(config)
    sound(config)
    assert manifest_of(config).samples().filter(simulation="SB35_0", halo=gone).is_empty()
    assert all(layout_of(config).superseded_file(digest).exists() for digest in old["sha256"])


def test_a_damaged_file_is_made_again_byte_by_byte(config: DatasetConfig) -> None:
    """A sample that is asked for by its id comes out as it was, and the damaged file is not kept."""
    row = manifest_of(config).samples().row(0, named=True)
    path = config.output_root / row["path"]
    path.write_bytes(path.read_bytes()[:100])
    refresh(config, refresh=False, remake=[row["sample_id"]])
    sound(config)
    assert manifest_of(config).samples().row(0, named=True)["sha256"] == row["sha256"]
    assert not (config.output_root / "superseded").exists()


@pytest.mark.parametrize("remade", [True, False], ids=["remade", "other"])
def test_a_sample_that_has_two_rows_is_counted_once(config: DatasetConfig, remade: bool) -> None:
    """Whether that sample or another one is made anew, the attempt says how many samples there are."""
    samples = manifest_of(config).samples().filter(simulation="SB35_0")
    arrow = samples.head(1).to_arrow(compat_level=pl.CompatLevel.oldest())
    write_deltalake(layout_of(config).samples_table, arrow, mode="append")
    refresh(config, refresh=False, remake=[samples["sample_id"][0 if remade else 1]])
    latest = manifest_of(config).latest_simulations().filter(simulation="SB35_0")
    assert latest["n_committed"].to_list() == [4]
    assert manifest_of(config).samples().filter(simulation="SB35_0").height == (4 if remade else 5)


@pytest.mark.parametrize("step", ["announce", "overwrite_rows", "finish", "append_rows"])
def test_a_refresh_that_is_killed_leaves_the_old_or_the_new(
    config: DatasetConfig, suite: MockSuite, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed at any step of the commit, the next run finds a whole data set and ends where an undisturbed one does."""
    masses_raised(file_of(suite.hydro_base))
    touch(file_of(suite.hydro_base))

    class KilledError(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(manifest_module, step, killed)
        with pytest.raises(KilledError):
            refresh(config, run_id="killed")
    committed = set(manifest_of(config).samples().filter(simulation="SB35_0")["run_id"])
    assert committed == ({"run"} if step in ("announce", "overwrite_rows") else {"killed"})
    manifest_of(config).finish_interrupted()
    sound(config)
    refresh(config, run_id="again")
    sound(config)
    assert work_of(config, "SB35_0").reason is Reason.NOTHING_TO_DO


def test_input_that_changes_between_plan_and_run_is_not_used(config: DatasetConfig, suite: MockSuite) -> None:
    """A catalogue replaced after planning fails the attempt, which says so, and commits no sample of the old plan."""
    more = DatasetConfig.from_values(config.model_dump() | {"strata": [{"rotations": 3}]})
    work = work_of(more, "SB35_0")
    with h5py.File(file_of(suite.catalogue_base), "r+") as file:
        file["Group/GroupPos"][0] += 1.0
    touch(file_of(suite.catalogue_base))
    screened = screen_block([work], more, read_parameter_table(find_parameter_file(more)))
    assert plan_block(screened, more, "late", 0) is None
    (outcome,) = block_outcomes(layout_of(more), screened, None, {})
    assert "changed since" in outcome.error and recording.SimulationOutcome is type(outcome)


def test_a_changed_input_holds_back_new_samples_of_that_simulation(config: DatasetConfig, suite: MockSuite) -> None:
    """Samples of two inputs never stand side by side: an extension of a stale simulation waits for the refresh."""
    masses_raised(file_of(suite.hydro_base))
    touch(file_of(suite.hydro_base))
    more = DatasetConfig.from_values(config.model_dump() | {"strata": [{"rotations": 3}]})
    work = work_of(more, "SB35_0")
    assert (len(work.missing), work.to_make, work.reason) == (2, (), Reason.STALE)
    assert [plan.plan for plan in outcomes_of(more, project(more))] != []
    refresh(more)
    assert manifest_of(more).samples().filter(simulation="SB35_0").height == 6
    sound(more)
