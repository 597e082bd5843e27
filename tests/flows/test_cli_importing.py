"""The command `import`: an older data set, taken over and checked."""

import json
from pathlib import Path

import pytest
from command_line import bases, call, fine, on_disk, refused
from older_generator import write_older_dataset

from storage.mock_suite import MockSuite, write_mock_suite

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("elsewhere")]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Return a suite whose highest number says that there are ten simulations, of which number 3 is for testing."""
    root = tmp_path_factory.mktemp("suite")
    return write_mock_suite(root, simulations=["SB35_3", "SB35_9"], particles_per_side=8, halos_per_simulation=1)


@pytest.fixture
def older(suite: MockSuite, elsewhere: Path) -> Path:
    paths = (suite.dmo_base, suite.hydro_base, suite.catalogue_base)
    write_older_dataset(elsewhere / "older", *paths, [3, 9], total_sims=10, npix=16)
    return elsewhere / "older"


def options(suite: MockSuite) -> list[str]:
    return ["-d", "new", "--option", "resolution=16", *bases(suite)]


def test_an_older_data_set_is_taken_over_and_asked(suite: MockSuite, older: Path) -> None:
    """Import, with what is wrong in a table; then every command works, from the data set's own settings."""
    before = on_disk(older)
    said = fine("import", older, *options(suite))
    assert "4 of 4 samples of 2 simulations are in new." in said
    rows = {line.split("│")[1].strip(): line for line in said.splitlines() if line.startswith("│")}
    assert "4 matching" in rows["25 Mpc/h"]
    assert "mass missing" in rows["50 Mpc/h"]
    assert "Maps that lack mass, since the older generator made too few periodic copies: 50 Mpc/h." in said
    assert on_disk(older) == before
    marked = "SELECT split, count(*) AS n FROM samples WHERE output_version = 0 GROUP BY split ORDER BY split"
    assert json.loads(fine("query", marked, "-d", "new", "--json")) == [
        {"split": "test", "n": 2},
        {"split": "train", "n": 2},
    ]
    status = call("status", "-d", "new")
    assert "4 samples stale" not in status.stdout
    assert status.stdout.count("imported, as another generator made them") == 2
    assert json.loads(fine("audit", "-d", "new", "--depth", "verified", "--json"))["ok"]
    fine("normalize", "-d", "new")
    fine("pack", "-d", "new")
    again = fine("import", older, "-d", "new", "--json")
    assert json.loads(again) == json.loads(Path("new/import/report.json").read_text())


def test_bad_files_are_named_and_fail_the_command(suite: MockSuite, older: Path) -> None:
    """A truncated file has status 1 and its reason on standard error; the others are imported."""
    bad = older / "train" / "sim_9" / "sim_9_halo_0_rot_1.npz"
    bad.write_bytes(bad.read_bytes()[:100])
    result = call("import", older, *options(suite), "--check", "0")
    assert result.exit_code == 1
    assert "3 of 4 samples" in result.stdout
    assert "No map was compared" in result.stdout
    assert f"not imported: {bad}: is not a whole .npz archive" in result.stderr


def test_what_cannot_be_imported_is_said(suite: MockSuite, older: Path, elsewhere: Path) -> None:
    """No samples, another split, or a data set of this system: a message, status 1 and nothing written."""
    assert "no samples of the older generator" in refused("import", elsewhere, *options(suite))
    assert "--total-sims 10." in refused("import", older, *options(suite), "--total-sims", "20")
    assert "would lie among the older samples" in refused("import", older, *options(suite)[2:], "-d", older)
    assert not Path("new").exists()
    fine("import", older, *options(suite))
    assert "with a manifest of its own" in refused("import", "new", *options(suite))
    assert "made with other settings" in refused("import", older, *options(suite), "--option", "depth=40")
