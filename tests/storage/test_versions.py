"""Versions by number, time and tag, and how two of them differ."""

import json
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from storage.compaction import commit_properties, compact
from storage.differences import difference
from storage.manifest import Manifest
from storage.tables import BEFORE_THE_FIRST
from storage.tags import TagError, delete_tag, read_tags
from storage.versions import (
    DatasetVersion,
    VersionError,
    is_time,
    resolve_version,
    tag_version,
    time_meant,
    version_named,
)

INSTANT = timedelta(microseconds=1)


def simulations_in(dataset, version: DatasetVersion) -> set[str]:
    return set(Manifest(dataset.layout).samples(version.number)["simulation"])


def recorded_in(dataset, version: DatasetVersion) -> dict[str, str]:
    rows = Manifest(dataset.layout).simulations(version.simulations_number)
    return dict(rows.select("simulation", "status").rows())


def block(dataset, name: str, status: str = "blocked") -> None:
    """Record a simulation without samples."""
    dataset.open().commit(None, dataset.simulation_rows(name, status=status, n_committed=0), "run")


def remake(dataset, name: str, run_id: str = "again", **changes) -> int:
    """Replace a simulation's rows in one commit, as a refresh does."""
    rows = dataset.sample_rows(name, run_id=run_id).with_columns(**changes)
    return dataset.open().commit(
        rows,
        dataset.simulation_rows(name, run_id=run_id),
        run_id,
        replaced=set(rows["sample_id"]),
        action="refresh",
    )


# By number and time


def test_the_latest_version_is_meant_by_default(dataset) -> None:
    """Without a name, the version is the newest one, with the newest state of the simulations."""
    dataset.commit("SB35_0")
    dataset.commit("SB35_1")
    block(dataset, "SB35_2")
    version = resolve_version(dataset.layout)
    assert (version.number, version.simulations_number) == (1, 2)
    assert version.committed_at == dataset.open().versions[1].committed_at
    assert recorded_in(dataset, version) == {"SB35_0": "complete", "SB35_1": "complete", "SB35_2": "blocked"}


@pytest.mark.parametrize("text", [0, "0"])
def test_a_number_means_samples_and_simulations_of_then(dataset, text: str | int) -> None:
    """An earlier version holds the samples of then, and of the simulations what belongs to them, nothing later."""
    dataset.commit("SB35_0")
    block(dataset, "SB35_9")
    dataset.commit("SB35_1")
    version = resolve_version(dataset.layout, text)
    assert simulations_in(dataset, version) == {"SB35_0"}
    assert recorded_in(dataset, version) == {"SB35_0": "complete", "SB35_9": "blocked"}


@pytest.mark.parametrize("name", ["7", "-1", "1.0", "trained", "", "latest", "99999999999999999999", "0x0"])
def test_what_is_no_version_is_refused_with_those_there_are(dataset, name: str) -> None:
    """A number that does not exist, or a tag that nobody gave, is refused with the range of versions and the tags."""
    dataset.commit("SB35_0")
    dataset.commit("SB35_1")
    tag_version(dataset.layout, "first", 0)
    with pytest.raises(VersionError, match=r"its versions are 0 \(.*\) to 1 \(.*\), and its tags: first"):
        resolve_version(dataset.layout, name)


def test_a_time_means_the_newest_version_until_then(dataset) -> None:
    """At the instant of a commit the version is that commit's; just before it, the one before; much later, the last."""
    for name in ("SB35_0", "SB35_1", "SB35_2"):
        dataset.commit(name)
    layout, times = dataset.layout, [version.committed_at for version in dataset.open().versions]
    assert [resolve_version(layout, at=time).number for time in times] == [0, 1, 2]
    assert resolve_version(layout, at=times[2] - INSTANT).number == 1
    assert resolve_version(layout, at=times[2] + timedelta(days=9)).number == 2
    assert resolve_version(layout, at=times[1].astimezone(timezone(timedelta(hours=5)))).number == 1
    assert resolve_version(layout, at=times[1].replace(tzinfo=None)).number == 1
    with pytest.raises(VersionError, match=r"Nothing was committed .* by .*its versions are 0"):
        resolve_version(layout, at=times[0] - timedelta(days=1))


def test_a_time_leaves_out_what_was_recorded_of_simulations_later(dataset) -> None:
    """A simulation that was blocked after that time is not in it, although the version of the samples is the same."""
    dataset.commit("SB35_0")
    before = datetime.now(UTC)
    block(dataset, "SB35_1")
    assert recorded_in(dataset, resolve_version(dataset.layout, at=before)) == {"SB35_0": "complete"}
    assert set(recorded_in(dataset, resolve_version(dataset.layout, "0"))) == {"SB35_0", "SB35_1"}


def test_a_name_and_a_time_are_too_much(dataset) -> None:
    """A version cannot be named and dated at once."""
    dataset.commit("SB35_0")
    with pytest.raises(VersionError, match="by its name or by a time"):
        resolve_version(dataset.layout, "0", datetime.now(UTC))


def test_before_any_sample_there_are_only_simulations(dataset) -> None:
    """A data set of blocked simulations only is the version before the first, and cannot be tagged."""
    block(dataset, "SB35_0")
    version = resolve_version(dataset.layout)
    assert (version.number, version.simulations_number, version.committed_at) == (BEFORE_THE_FIRST, 0, None)
    assert simulations_in(dataset, version) == set()
    assert recorded_in(dataset, version) == {"SB35_0": "blocked"}
    with pytest.raises(VersionError, match="no sample was committed"):
        resolve_version(dataset.layout, "0")
    with pytest.raises(VersionError, match="no sample was committed"):
        tag_version(dataset.layout, "empty")


def test_commits_of_other_tools_are_placed_by_their_time(dataset) -> None:
    """Rows of simulations that say nothing of the samples belong to the version that there was when they came."""
    dataset.commit("SB35_0")
    rows = dataset.open().simulations().with_columns(simulation=pl.lit("SB35_7"))
    write_deltalake(dataset.layout.simulations_table, rows.to_arrow(), mode="append")
    dataset.commit("SB35_1")
    assert set(recorded_in(dataset, resolve_version(dataset.layout, 0))) == {"SB35_0", "SB35_7"}
    assert set(recorded_in(dataset, resolve_version(dataset.layout, 1))) == {"SB35_0", "SB35_1", "SB35_7"}


def test_a_version_never_speaks_of_samples_that_came_later(dataset) -> None:
    """If two runs commit at once and the slower one's simulations come last, the earlier version has neither's."""
    dataset.commit("SB35_0")
    dataset.commit("SB35_1")
    rows = dataset.open().simulations().with_columns(simulation=pl.lit("SB35_7"))
    late = commit_properties({"samples_version": "0"})
    write_deltalake(dataset.layout.simulations_table, rows.to_arrow(), mode="append", commit_properties=late)
    assert set(recorded_in(dataset, resolve_version(dataset.layout, 0))) == {"SB35_0"}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-23", datetime(2026, 11, 24, tzinfo=UTC) - INSTANT),
        ("2026-11-23T18", datetime(2026, 11, 23, 19, tzinfo=UTC) - INSTANT),
        ("2026-11-23 18:30", datetime(2026, 11, 23, 18, 31, tzinfo=UTC) - INSTANT),
        ("2026-11-23T18:30:05", datetime(2026, 11, 23, 18, 30, 6, tzinfo=UTC) - INSTANT),
        ("2026-11-23T18:30:05Z", datetime(2026, 11, 23, 18, 30, 6, tzinfo=UTC) - INSTANT),
        ("2026-11-23 18:30:05 UTC", datetime(2026, 11, 23, 18, 30, 6, tzinfo=UTC) - INSTANT),
        ("2026-11-23T18:30:05+02:00", datetime(2026, 11, 23, 16, 30, 6, tzinfo=UTC) - INSTANT),
        ("2026-11-23T18:30:05.25", datetime(2026, 11, 23, 18, 30, 5, 250_000, tzinfo=UTC)),
        ("2026-11-23T18:30:05.123456-0800", datetime(2026, 11, 24, 2, 30, 5, 123456, tzinfo=UTC)),
    ],
)
def test_a_time_means_the_end_of_what_it_names(text: str, meant: datetime) -> None:
    """A day means its last instant, and so do an hour, a minute and a second; UTC, unless a zone is given."""
    assert is_time(text)
    assert time_meant(text) == meant


@pytest.mark.parametrize("text", ["yesterday", "12", "2026", "2026-11", "20261123", "2026-11-23T", "", "2026-11-23+02"])
def test_what_is_no_time_is_refused(text: str) -> None:
    """Other texts are refused with an example of what is expected."""
    assert not is_time(text)
    with pytest.raises(VersionError, match="ISO 8601"):
        time_meant(text)


@pytest.mark.parametrize("text", ["2026-02-30", "2026-11-23T25", "9999-12-31", "2026-11-23T10:61"])
def test_a_time_that_there_is_not_is_refused(text: str) -> None:
    """The 30th of February is refused with what is wrong about it."""
    with pytest.raises(VersionError, match="no such time"):
        time_meant(text)


# Tags


def test_a_tag_names_a_version_and_says_who_and_what(dataset) -> None:
    """A tag finds its version; it is recorded with user, host, time, configuration, number of samples and note."""
    dataset.commit("SB35_0")
    dataset.commit("SB35_1")
    tag = tag_version(dataset.layout, "trained-2026-11", "0", "the model of the paper")
    assert (tag.version, tag.samples, tag.config_digests) == (0, 2, (dataset.config.digest,))
    assert tag.note == "the model of the paper"
    assert tag.user
    assert tag.host
    assert timedelta(0) <= datetime.now(UTC) - tag.tagged_at < timedelta(minutes=5)
    assert read_tags(dataset.layout) == [tag]
    version = resolve_version(dataset.layout, "trained-2026-11")
    assert (version.number, version.tags) == (0, ("trained-2026-11",))
    assert resolve_version(dataset.layout, 0).tags == ("trained-2026-11",)
    assert resolve_version(dataset.layout, 1).tags == ()


def test_a_tag_means_the_same_after_everything_that_can_come_later(dataset) -> None:
    """After more samples, remade ones, another state of the simulations and compaction, a tag has the rows of then."""
    dataset.commit("SB35_0", "SB35_1")
    block(dataset, "SB35_2")
    layout, manifest = dataset.layout, dataset.open()
    tag_version(layout, "trained")
    samples, simulations = manifest.samples(), manifest.simulations()
    block(dataset, "SB35_2", status="no_work")
    dataset.commit("SB35_3")
    remake(dataset, "SB35_1")
    for table in (layout.samples_table, layout.simulations_table):
        assert compact(table, {"run_id": "run"}) > 1
    dataset.commit("SB35_4")
    version = resolve_version(layout, "trained")
    assert manifest.samples(version.number).equals(samples)
    assert manifest.simulations(version.simulations_number).equals(simulations)
    assert manifest.samples().height == 8


def test_a_tag_is_never_overwritten(dataset) -> None:
    """The same tag again is fine; one with another version or note is refused, and says who holds the name."""
    dataset.commit("SB35_0")
    dataset.commit("SB35_1")
    first = tag_version(dataset.layout, "trained", 0, "a")
    assert tag_version(dataset.layout, "trained", 0, "a") == first
    for version, note in ((1, "a"), (0, "b"), (0, "")):
        with pytest.raises(TagError, match="is taken: it means version 0, by"):
            tag_version(dataset.layout, "trained", version, note)
    assert read_tags(dataset.layout) == [first]


def test_a_deleted_tag_is_free(dataset) -> None:
    """Deleting a tag leaves its version and the other tags; the name can be given to another version."""
    dataset.commit("SB35_0")
    dataset.commit("SB35_1")
    tag_version(dataset.layout, "other", 0)
    tag_version(dataset.layout, "trained", 0)
    assert delete_tag(dataset.layout, "trained").version == 0
    assert [tag.name for tag in read_tags(dataset.layout)] == ["other"]
    assert simulations_in(dataset, resolve_version(dataset.layout, 0)) == {"SB35_0"}
    assert tag_version(dataset.layout, "trained", 1).version == 1
    with pytest.raises(TagError, match=r"no tag 'nobody' to delete.*other, trained"):
        delete_tag(dataset.layout, "nobody")


@pytest.mark.parametrize(
    "name",
    ["", "12", "2026-11-23", "2026-11-23x", "../trained", "a/b", ".hidden", "-x", "a b", "ä", "a" * 101, "a\n", "٣"],
)
def test_a_name_that_is_none_is_refused(dataset, name: str) -> None:
    """Numbers, dates, paths, options and other characters are refused before anything is written."""
    dataset.commit("SB35_0")
    with pytest.raises(TagError, match="cannot be a tag"):
        tag_version(dataset.layout, name)
    assert not (dataset.root / "manifest" / "tags").exists()


@pytest.mark.parametrize("name", ["v1.0", "A", "_x", "trained-2026-11", "1a", "a.json", "2026.11", "a" * 100])
def test_names_of_letters_digits_and_signs_are_tags(dataset, name: str) -> None:
    """A tag may hold dots, dashes and underscores, and begin with a digit."""
    dataset.commit("SB35_0")
    tag_version(dataset.layout, name)
    assert version_named(dataset.layout, name).tags == (name,)


def test_a_tag_of_another_table_is_refused(dataset_at) -> None:
    """If the manifest was made anew, a version of the same number is not the one that was tagged."""
    dataset, other = dataset_at("a"), dataset_at("b")
    dataset.commit("SB35_0")
    other.commit("SB35_1")
    tag_version(dataset.layout, "trained")
    (other.root / "manifest" / "tags").mkdir()
    content = (dataset.root / "manifest" / "tags" / "trained.json").read_text()
    (other.root / "manifest" / "tags" / "trained.json").write_text(content)
    with pytest.raises(VersionError, match="not the one that was tagged"):
        resolve_version(other.layout, "trained")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"name": "x"}', "\x00"])
def test_a_damaged_tag_is_named(dataset, content: str) -> None:
    """A tag that cannot be read is an error with its path, not a tag less."""
    dataset.commit("SB35_0")
    tag_version(dataset.layout, "trained")
    path = dataset.root / "manifest" / "tags" / "trained.json"
    path.write_text(content)
    with pytest.raises(TagError, match=r"trained\.json cannot be read"):
        resolve_version(dataset.layout, 0)


def test_tags_are_plain_files_without_leftovers(dataset) -> None:
    """A tag is one readable JSON file; what a killed writer left beside it is no tag."""
    dataset.commit("SB35_0")
    tag_version(dataset.layout, "trained", note="größer")
    folder = dataset.root / "manifest" / "tags"
    assert [file.name for file in folder.iterdir()] == ["trained.json"]
    values = json.loads((folder / "trained.json").read_text(encoding="utf-8"))
    assert (values["version"], values["note"]) == (0, "größer")
    (folder / ".half.json.0123456789abcdef.bind-tmp").write_text("{")
    (folder / ".half.json").write_text("{")
    assert [tag.name for tag in read_tags(dataset.layout)] == ["trained"]


# Differences


def test_versions_differ_by_what_came_went_and_changed(dataset) -> None:
    """Each sample that differs is listed once, with the columns of changed ones, and counted by simulation."""
    dataset.commit("SB35_0", "SB35_2", "SB35_10")
    dataset.commit("SB35_3")
    remake(dataset, "SB35_2", halo_mass=pl.when(pl.col("rotation") == 1).then(9e13).otherwise(pl.col("halo_mass")))
    DeltaTable(dataset.layout.samples_table).delete("sample_id = 'SB35_10_halo_0_rot_1'")
    layout = dataset.layout
    found = difference(layout, resolve_version(layout, 0), resolve_version(layout))
    assert found.samples.select("sample_id", "what", "columns").rows() == [
        ("SB35_2_halo_0_rot_0", "changed", ["run_id", "created_at"]),
        ("SB35_2_halo_0_rot_1", "changed", ["halo_mass", "run_id", "created_at"]),
        ("SB35_3_halo_0_rot_0", "added", None),
        ("SB35_3_halo_0_rot_1", "added", None),
        ("SB35_10_halo_0_rot_1", "removed", None),
    ]
    assert found.per_simulation.rows() == [("SB35_2", 0, 0, 2), ("SB35_3", 2, 0, 0), ("SB35_10", 0, 1, 0)]
    assert found.changed_columns == {"created_at": 2, "run_id": 2, "halo_mass": 1}
    back = difference(layout, resolve_version(layout), resolve_version(layout, 0))
    assert back.per_simulation.rows() == [("SB35_2", 0, 0, 2), ("SB35_3", 0, 2, 0), ("SB35_10", 1, 0, 0)]


def test_statuses_that_changed_are_listed(dataset) -> None:
    """A simulation whose newest attempt has another status, or none before, is listed with both and its message."""
    dataset.commit("SB35_0")
    manifest = dataset.open()
    manifest.commit(None, dataset.simulation_rows("SB35_1", status="blocked", message="no catalogue"), "run")
    tag_version(dataset.layout, "before")
    dataset.commit("SB35_1")
    manifest.commit(None, dataset.simulation_rows("SB35_0", status="complete"), "run")
    manifest.commit(None, dataset.simulation_rows("SB35_2", status="failed", message="lost a rank"), "run")
    found = difference(dataset.layout, resolve_version(dataset.layout, "before"), resolve_version(dataset.layout))
    assert found.statuses.rows() == [("SB35_1", "blocked", "complete", ""), ("SB35_2", None, "failed", "lost a rank")]


def test_compaction_is_no_difference(dataset) -> None:
    """Versions between which only files were rearranged do not differ, and neither does one from itself."""
    dataset.commit("SB35_0")
    dataset.commit("SB35_1")
    layout, before = dataset.layout, resolve_version(dataset.layout)
    compact(layout.samples_table, {})
    after = resolve_version(layout)
    assert after.number == before.number + 1
    assert difference(layout, before, after).empty
    assert difference(layout, before, before).empty


def test_a_row_that_is_there_twice_is_one_that_came(dataset) -> None:
    """A duplicated row, as a faulty tool may leave it, is listed as one sample that was added."""
    dataset.commit("SB35_0")
    layout, before = dataset.layout, resolve_version(dataset.layout)
    row = dataset.open().samples().head(1)
    write_deltalake(layout.samples_table, row.to_arrow(), mode="append")
    found = difference(layout, before, resolve_version(layout))
    assert found.samples.select("sample_id", "what").rows() == [("SB35_0_halo_0_rot_0", "added")]


def test_a_column_that_a_version_lacks_is_empty_there(dataset) -> None:
    """Rows of before a column existed changed only where they have a value in it since."""
    dataset.commit("SB35_0", "SB35_1")
    layout = dataset.layout
    colour = pl.when(pl.col("simulation") == "SB35_1").then(pl.lit("red")).alias("colour")
    rows = dataset.open().samples().with_columns(colour).to_arrow(compat_level=pl.CompatLevel.oldest())
    write_deltalake(layout.samples_table, rows, mode="overwrite", schema_mode="overwrite")
    before, after = resolve_version(layout, 0), resolve_version(layout, 1)
    for one, other in ((before, after), (after, before)):
        found = difference(layout, one, other)
        assert found.changed_columns == {"colour": 2}
        assert set(found.samples["simulation"]) == {"SB35_1"}
