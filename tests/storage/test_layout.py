from pathlib import Path

import pytest

from bind_core.errors import BindDataError
from bind_core.splits import Split
from storage.layout import DatasetLayout, LayoutError

ROOT = Path("/sets/one")


@pytest.mark.parametrize(
    ("set_name", "simulation", "expected"),
    [
        ("SB35", "SB35_0", "train/sim_0/sim_0_halo_3_rot_7.npz"),
        ("1P", "1P_p1_n2", "train/sim_p1_n2/sim_p1_n2_halo_3_rot_7.npz"),
        ("CV", "CV_26", "train/sim_26/sim_26_halo_3_rot_7.npz"),
    ],
)
def test_a_sample_lies_where_readers_look_for_it(set_name: str, simulation: str, expected: str) -> None:
    """The path names split, simulation without its set, halo and rotation."""
    assert DatasetLayout(ROOT, set_name).sample_path(Split.TRAIN, simulation, 3, 7) == ROOT / expected


@pytest.mark.parametrize(
    "simulation",
    ["SB35_../../x", "../x", "/etc/x", "SB35_a/b", "SB35_", "SB35", "CV_0", "SB35_0\n", "SB35_.", "SB35_\0"],
)
def test_a_name_that_would_leave_the_root_is_refused(simulation: str) -> None:
    """Names with separators or dots, and names of other sets, never become paths."""
    with pytest.raises(BindDataError):
        DatasetLayout(ROOT, "SB35").sample_path("train", simulation, 0, 0)


def test_unknown_splits_and_negative_numbers_are_refused() -> None:
    """Only train and test, and numbers from 0, have paths."""
    layout = DatasetLayout(ROOT, "SB35")
    with pytest.raises(LayoutError, match="validation"):
        layout.sample_path("validation", "SB35_0", 0, 0)
    with pytest.raises(LayoutError, match="-1"):
        layout.sample_path("test", "SB35_0", -1, 0)
    with pytest.raises(LayoutError, match="-2"):
        layout.sample_path("test", "SB35_0", 0, -2)


def test_only_samples_lie_where_readers_walk() -> None:
    """Nothing but samples has a path below train or test."""
    layout = DatasetLayout(ROOT, "SB35")
    others = (
        layout.samples_table,
        layout.simulations_table,
        layout.configuration_file,
        layout.work_folder,
        layout.statistics_folder,
        layout.contact_sheet_file,
    )
    for path in others:
        assert layout.relative(path).split("/")[0] not in set(Split)
    assert len(set(others)) == len(others)


def test_relative_paths_return(tmp_path: Path) -> None:
    """A recorded path leads back to its file, also after the data set was moved."""
    before, after = DatasetLayout(tmp_path / "before", "SB35"), DatasetLayout(tmp_path / "after", "SB35")
    recorded = before.relative(before.sample_path("test", "SB35_4", 1, 2))
    assert recorded == "test/sim_4/sim_4_halo_1_rot_2.npz"
    assert after.absolute(recorded) == after.sample_path("test", "SB35_4", 1, 2)


def test_paths_outside_have_no_relative_path(tmp_path: Path) -> None:
    """The root itself, its neighbours and paths through .. are not recorded."""
    layout = DatasetLayout(tmp_path, "SB35")
    for path in (tmp_path, tmp_path.parent / "x", tmp_path / ".." / "x"):
        with pytest.raises(LayoutError, match="not below the root"):
            layout.relative(path)


def test_a_recorded_path_cannot_lead_out(tmp_path: Path) -> None:
    """Neither .., nor an absolute path, nor a symbolic link in the data set leads a reader elsewhere."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "train").symlink_to(tmp_path)
    for recorded in ("../secret.npz", "/etc/passwd", "train/secret.npz"):
        with pytest.raises(LayoutError, match="leads out"):
            DatasetLayout(root, "SB35").absolute(recorded)


@pytest.mark.parametrize("name", ["a#b", "a?b", "a[1]", "a%20b", "a\\b", "a\nb"])
def test_a_root_that_tables_cannot_live_in_is_refused(tmp_path: Path, name: str) -> None:
    """Paths that the table library takes for something else are refused before any work is done, links included."""
    with pytest.raises(LayoutError, match="output_root"):
        DatasetLayout(tmp_path / name, "SB35")
    (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / name)
    with pytest.raises(LayoutError, match="output_root"):
        DatasetLayout(tmp_path / "link", "SB35")
