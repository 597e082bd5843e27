"""The commands about versions: `versions`, `tag`, `diff`, and `--version` and `--at` of those that ask."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from block_runs import make
from command_line import MadeDataset, call, fine, made, on_disk, refused

from bind_core.config import DatasetConfig
from storage.compaction import compact
from storage.layout import DatasetLayout
from storage.manifest import Manifest, open_dataset
from storage.mock_suite import write_mock_suite

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("elsewhere")]

COUNT = "SELECT count(*) AS n FROM samples"


@pytest.fixture
def grown(tmp_path: Path) -> MadeDataset:
    """Return a data set of four versions: one simulation, tagged; a second one; the first anew; compacted."""
    dataset = made(tmp_path, simulations=1)
    fine("tag", "trained", "-d", dataset.root, "--note", "first [model]")
    write_mock_suite(tmp_path / "suite", simulations=2, particles_per_side=8, halos_per_simulation=1)
    make(dataset.config)
    remake(dataset.config, "SB35_0")
    compact(DatasetLayout(Path(dataset.root), "SB35").samples_table, {"action": "compact"})
    return dataset


def remake(config: DatasetConfig, simulation: str) -> None:
    """Replace a simulation's rows by ones of another run and status, as a refresh does."""
    manifest = open_dataset(DatasetLayout(config.output_root, config.set_name), config)
    rows = manifest.samples().filter(pl.col("simulation") == simulation).with_columns(run_id=pl.lit("again"))
    attempt = (
        manifest.latest_simulations()
        .filter(pl.col("simulation") == simulation)
        .with_columns(
            run_id=pl.lit("again"), status=pl.lit("partial"), recorded_at=pl.col("recorded_at").dt.offset_by("1h")
        )
    )
    manifest.commit(rows, attempt, "again", replaced=set(rows["sample_id"]), action="refresh")


def test_versions_say_who_when_and_what_for(grown: MadeDataset) -> None:
    """Each version has its time, committer, operation, run, counts and tags, as a table and as JSON."""
    listed = json.loads(fine("versions", "-d", grown.root, "--json"))
    assert [entry["version"] for entry in listed] == [0, 1, 2, 3]
    assert [entry["operation"] for entry in listed] == ["generate", "generate", "refresh", "compact"]
    assert [(entry["samples_added"], entry["samples_removed"]) for entry in listed] == [(2, 0), (2, 0), (2, 2), (0, 0)]
    assert [entry["tags"] for entry in listed] == [["trained"], [], [], []]
    assert listed[2]["run_id"] == "again"
    for entry in listed[:3]:
        assert entry["config_digest"] == grown.config.digest
        assert entry["user"]
        assert entry["host"]
    text = fine("versions", "-d", grown.root)
    assert re.search(rf"│ 0 +│ {listed[0]['committed_at'][:10]} .* generate .* trained ", text)
    assert "4 versions" in text


def test_an_earlier_version_is_asked(grown: MadeDataset) -> None:
    """By number, tag and time, `query` answers what it answered then, in SQL and ready questions."""
    runs = "SELECT DISTINCT run_id FROM samples WHERE simulation = 'SB35_0'"
    times = [entry["committed_at"] for entry in json.loads(fine("versions", "-d", grown.root, "--json"))]
    for then in (("--version", "0"), ("--version", "trained"), ("--at", times[0])):
        assert json.loads(fine("query", COUNT, "-d", grown.root, "--json", *then)) == [{"n": 2}]
        assert json.loads(fine("query", runs, "-d", grown.root, "--json", *then)) != [{"run_id": "again"}]
        (contents,) = json.loads(fine("query", "--ask", "contents", "-d", grown.root, "--json", *then))
        assert contents["simulations"] == 1
    for then in ((), ("--version", "3"), ("--at", times[-1]), ("--at", "2999-01-01")):
        assert json.loads(fine("query", COUNT, "-d", grown.root, "--json", *then)) == [{"n": 4}]
        assert json.loads(fine("query", runs, "-d", grown.root, "--json", *then)) == [{"run_id": "again"}]


def test_status_of_then_is_that_of_the_record(grown: MadeDataset) -> None:
    """At an earlier version, status is what was recorded then, whatever has become of the suite since."""
    result = call("status", "-d", grown.root, "--version", "3", "--json")
    assert result.exit_code == 1
    now = json.loads(result.stdout)
    assert {row["simulation"]: row["status"] for row in now["simulations"]} == {
        "SB35_0": "partial",
        "SB35_1": "complete",
    }
    assert (now["ok"], now["version"]["version"]) == (False, 3)
    for file in grown.suite.dmo_base.rglob("*.hdf5"):
        file.unlink()
    then = json.loads(fine("status", "-d", grown.root, "--version", "trained", "--json"))
    assert [(row["simulation"], row["status"], row["committed"]) for row in then["simulations"]] == [
        ("SB35_0", "complete", 2)
    ]
    assert then["totals"]["planned"] == then["totals"]["committed"] == 2
    assert then["totals"]["stale"] is then["totals"]["orphaned"] is None
    assert then["version"]["tags"] == ["trained"]
    text = fine("status", "-d", grown.root, "--version", "trained")
    assert "by the record of then" in text
    assert "2 of 2 planned samples" in text


def test_tags_are_given_listed_and_deleted(grown: MadeDataset) -> None:
    """A tag is given once, listed with its note, found by every command, and refused to another version."""
    (tag,) = json.loads(fine("tag", "now", "-d", grown.root, "--json"))
    assert (tag["version"], tag["samples"], tag["config_digests"]) == (3, 4, [grown.config.digest])
    (older,) = json.loads(fine("tag", "older", "--version", "trained", "-d", grown.root, "--json"))
    assert older["version"] == 0
    text = fine("tag", "--list", "-d", grown.root)
    assert re.search(r"│ trained +│ 0 .* first \[model\] +│", text)
    assert "3 tags" in text
    assert "is taken: it means version 0" in refused("tag", "trained", "-d", grown.root)
    assert "The tag trained of version 0, 2 samples" in fine(
        "tag", "trained", "--version", "0", "--note", "first [model]", "-d", grown.root
    )
    assert "Deleted" in fine("tag", "older", "--delete", "-d", grown.root)
    assert [tag["name"] for tag in json.loads(fine("tag", "--list", "-d", grown.root, "--json"))] == ["now", "trained"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the name of a tag, or --list"),
        (("x", "--list"), "the name of a tag, or --list"),
        (("--list", "--note", "x"), "belong to a new tag"),
        (("x", "--delete", "--version", "0"), "belong to a new tag"),
        (("x", "--delete"), "no tag 'x'"),
        (("x", "--version", "7"), "versions are 0"),
        (("../x",), "cannot be a tag"),
        (("7",), "cannot be a tag"),
    ],
)
def test_tags_that_cannot_be_are_explained(sound: MadeDataset, arguments: tuple[str, ...], said: str) -> None:
    """One message says what was expected, and nothing is written."""
    before = on_disk(Path(sound.root))
    assert said in refused("tag", "-d", sound.root, *arguments)
    assert on_disk(Path(sound.root)) == before


def test_diff_lists_what_came_and_changed(grown: MadeDataset) -> None:
    """From a tag to the latest: two samples added, two changed in their run, and the statuses that differ."""
    found = json.loads(fine("diff", "trained", "-d", grown.root, "--json"))
    assert (found["before"]["version"], found["after"]["version"]) == (0, 3)
    assert (found["added"], found["removed"], found["changed"]) == (2, 0, 2)
    assert found["changed_columns"] == {"run_id": 2}
    assert found["simulations"] == [
        {"simulation": "SB35_0", "added": 0, "removed": 0, "changed": 2},
        {"simulation": "SB35_1", "added": 2, "removed": 0, "changed": 0},
    ]
    assert found["samples"][0]["columns"] == ["run_id"]
    statuses = {row["simulation"]: (row["before"], row["after"]) for row in found["statuses"]}
    assert statuses == {"SB35_0": ("complete", "partial"), "SB35_1": (None, "complete")}
    text = fine("diff", "trained", "3", "-d", grown.root)
    assert "2 samples added, 0 removed, 2 changed, in 2 simulations; 2 simulations with another status." in text
    assert "Changed: run_id (2)" in text
    assert re.search(r"│ SB35_0_halo_0_rot_0 +│ changed +│ run_id +│", text)
    first, last = (text.index(name) for name in ("│ SB35_1 ", "│ SB35_1_halo_0_rot_0 "))
    assert first < last
    back = json.loads(fine("diff", "3", "0", "-d", grown.root, "--json"))
    assert (back["added"], back["removed"], back["changed"]) == (0, 2, 2)


def test_diff_shows_as_much_as_asked_for(grown: MadeDataset) -> None:
    """--limit cuts each part and says how much more there is; counts stay those of all."""
    text = fine("diff", "trained", "-d", grown.root, "--limit", "1")
    assert "SB35_0_halo_0_rot_1" not in text
    assert "… and 3 more" in text
    assert "2 samples added" in text
    assert len(json.loads(fine("diff", "0", "-d", grown.root, "--limit", "1", "--json"))["samples"]) == 1
    assert "SB35_0_halo" not in fine("diff", "trained", "-d", grown.root, "--limit", "0")


def test_diff_takes_times(grown: MadeDataset) -> None:
    """A and B may be times; what does not differ is said to be so, and what is no version is refused."""
    times = [entry["committed_at"] for entry in json.loads(fine("versions", "-d", grown.root, "--json"))]
    found = json.loads(fine("diff", times[1], times[2], "-d", grown.root, "--json"))
    assert (found["before"]["version"], found["after"]["version"]) == (1, 2)
    assert "No sample and no status differs" in fine("diff", "2", "3", "-d", grown.root)
    assert "its tags: trained" in refused("diff", "0", "nope", "-d", grown.root)
    assert "Nothing was committed" in refused("diff", "1999-12-31", "-d", grown.root)


def test_asking_about_versions_writes_nothing(grown: MadeDataset) -> None:
    """Listing, asking and comparing versions leave every file as it was."""
    before = on_disk(Path(grown.root))
    fine("versions", "-d", grown.root)
    fine("diff", "0", "-d", grown.root)
    fine("query", COUNT, "--version", "trained", "-d", grown.root)
    fine("tag", "--list", "-d", grown.root)
    assert on_disk(Path(grown.root)) == before
    assert Manifest(DatasetLayout(Path(grown.root), "SB35")).version == 3
