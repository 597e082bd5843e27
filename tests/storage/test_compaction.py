import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from storage import compaction
from storage.compaction import LEFTOVER_AGE, compact, keep_compact, remove_leftovers

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def with_rotation(row: pl.DataFrame, number: int) -> pl.DataFrame:
    """Return a row for another sample: its digest is its own, so that many of them are not compressed away."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    name = f"{row['simulation'][0]}_halo_0_rot_{number}"
    return row.with_columns(
        pl.lit(name).alias("sample_id"), pl.lit(number).alias("rotation"), pl.lit(digest).alias("sha256")
    )


def current_files(table: Path) -> list[Path]:
    """Return the data files of a table's latest version."""
    return [table / Path(uri).name for uri in DeltaTable(table).file_uris()]


def files_of(table: Path) -> set[str]:
    """Return the names of the data files in a table's folder."""
    return {path.name for path in table.glob("*.parquet*")}


def age(path: Path, days: float) -> None:
    """Make a file look as if it had been written some days before `NOW`."""
    then = (NOW - timedelta(days=days)).timestamp()
    os.utime(path, (then, then))


def age_all(table: Path, days: float) -> None:
    for path in table.glob("*.parquet*"):
        age(path, days)


def test_commits_keep_the_tables_in_few_files(dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """After many commits the tables lie in few files, with the same rows, and old versions are still answered."""
    monkeypatch.setattr(compaction, "_MOST_SMALL_FILES", 3)
    versions = [dataset.commit(f"SB35_{i}") for i in range(6)]
    manifest = dataset.open()
    assert len(current_files(dataset.layout.samples_table)) <= 4
    assert len(current_files(dataset.layout.simulations_table)) <= 4
    assert manifest.samples()["sample_id"].n_unique() == manifest.samples().height == 12
    assert [manifest.samples(version).height for version in versions] == [2, 4, 6, 8, 10, 12]
    assert {version.operation for version in manifest.versions} == {"WRITE", "OPTIMIZE"}


def test_versions_read_back_the_same_after_compaction(dataset) -> None:
    """Merging files, and removing leftovers long after, changes no value of any version, before or after it."""
    versions = [dataset.commit(f"SB35_{i}") for i in range(4)]
    manifest = dataset.open()
    before = [manifest.samples(version) for version in versions]
    attempts = [manifest.simulations(version) for version in versions]
    for table in (dataset.layout.samples_table, dataset.layout.simulations_table):
        assert compact(table, {"run_id": "tidy"}) == 4
        assert len(current_files(table)) == 1
        age_all(table, 400)
        assert remove_leftovers(table, NOW) == []
    assert manifest.version == versions[-1] + 1
    assert manifest.samples().equals(before[-1])
    for version, samples, simulations in zip(versions, before, attempts, strict=True):
        assert manifest.samples(version).equals(samples)
        assert manifest.simulations(version).equals(simulations)


def test_a_compaction_says_what_it_is(dataset) -> None:
    """The version that compaction makes names its run and says that it changed no sample."""
    for i in range(2):
        dataset.commit(f"SB35_{i}")
    compact(dataset.layout.samples_table, {"run_id": "tidy"})
    last = dataset.open().versions[-1]
    assert (last.run_id, last.action, last.samples_added, last.samples_removed) == ("tidy", "compact", 0, 0)


def test_there_may_be_nothing_to_merge(dataset) -> None:
    """A table of one file is left as it is, and a table that does not exist is not made."""
    assert compact(dataset.layout.samples_table, {}) == 0
    assert remove_leftovers(dataset.layout.samples_table, NOW) == []
    keep_compact(dataset.layout.samples_table, {}, NOW)
    assert not dataset.root.exists()
    version = dataset.commit("SB35_0")
    assert compact(dataset.layout.samples_table, {}) == 0
    assert dataset.open().version == version


def test_large_files_are_not_written_again(dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once merged up to the target size, a file stays: a commit rewrites no more for a larger table."""
    one = dataset.sample_rows("SB35_0", rotations=1)
    many = pl.concat([with_rotation(one, number) for number in range(1000)])
    dataset.open().commit(many, dataset.simulation_rows("SB35_0"), "run")
    table = dataset.layout.samples_table
    (large,) = current_files(table)
    monkeypatch.setattr(compaction, "TARGET_BYTES", large.stat().st_size - 1)
    for i in range(1, 5):
        dataset.commit(f"SB35_{i}")
    assert compact(table, {}) == 4
    assert large in current_files(table)
    assert len(current_files(table)) == 2
    assert dataset.open().samples().height == 1008


def test_many_large_files_cause_no_compaction(dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only small files count: a table of many files that are near the target size is left alone."""
    monkeypatch.setattr(compaction, "_MOST_SMALL_FILES", 1)
    monkeypatch.setattr(compaction, "TARGET_BYTES", 100)
    for i in range(4):
        dataset.commit(f"SB35_{i}")
    assert len(current_files(dataset.layout.samples_table)) == 4


@pytest.mark.parametrize("suffix", [".parquet", ".parquet#1"])
def test_a_leftover_is_removed_once_it_is_old(dataset, suffix: str) -> None:
    """A data file that a killed commit left is removed a day later, and not before; what is needed stays."""
    dataset.commit("SB35_0")
    table = dataset.layout.samples_table
    needed = files_of(table)
    leftover = table / f"part-00000-of-a-killed-commit{suffix}"
    leftover.write_bytes(b"half")
    age_all(table, 0.9)
    assert remove_leftovers(table, NOW) == []
    age_all(table, LEFTOVER_AGE / timedelta(days=1) + 0.1)
    assert remove_leftovers(table, NOW) == [leftover]
    assert files_of(table) == needed
    assert dataset.open().samples().height == 2


def test_leftovers_go_with_the_commits(dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to ask for it: the commit that merges files removes old leftovers too."""
    monkeypatch.setattr(compaction, "_MOST_SMALL_FILES", 2)
    dataset.commit("SB35_0")
    leftover = dataset.layout.samples_table / "part-00000-left.parquet"
    leftover.write_bytes(b"half")
    long_ago = datetime.now(UTC).timestamp() - 7 * 86400
    os.utime(leftover, (long_ago, long_ago))
    for i in range(1, 4):
        dataset.commit(f"SB35_{i}")
    assert not leftover.exists()
    assert dataset.open().samples().height == 8


def test_an_incomplete_log_removes_nothing(dataset) -> None:
    """Where the log does not reach back to the first version, it is not known what is needed, and all stays."""
    for i in range(3):
        dataset.commit(f"SB35_{i}")
    table = dataset.layout.samples_table
    leftover = table / "part-00000-left.parquet"
    leftover.write_bytes(b"half")
    age_all(table, 30)
    first = table / "_delta_log" / f"{0:020d}.json"
    content = first.read_bytes()
    first.unlink()
    assert remove_leftovers(table, NOW) == []
    first.write_bytes(content)
    assert remove_leftovers(table, NOW) == [leftover]


def test_a_compaction_killed_before_its_commit_does_no_harm(dataset) -> None:
    """Merged files without a commit are not seen by anyone, hinder no later commit, and are removed in the end."""
    for i in range(3):
        dataset.commit(f"SB35_{i}")
    table = dataset.layout.samples_table
    manifest = dataset.open()
    before, version, needed = manifest.samples(), manifest.version, files_of(table)
    compact(table, {})
    (table / "_delta_log" / f"{version + 1:020d}.json").unlink()  # the files are there, the commit is not
    (orphan,) = files_of(table) - needed
    assert manifest.version == version
    assert manifest.samples().equals(before)
    assert dataset.commit("SB35_3") == version + 1
    assert manifest.samples().height == 8
    assert compact(table, {}) == 4
    age_all(table, 2)
    assert remove_leftovers(table, NOW) == [table / orphan]
    assert manifest.samples().height == 8
    assert manifest.samples(version).equals(before)


def test_a_failing_compaction_does_not_fail_the_commit(dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files cannot be merged, the rows are committed all the same."""

    def fail(path: Path, metadata: dict[str, str]) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compaction, "_MOST_SMALL_FILES", 1)
    monkeypatch.setattr(compaction, "compact", fail)
    for i in range(3):
        dataset.commit(f"SB35_{i}")
    assert dataset.open().samples().height == 6
