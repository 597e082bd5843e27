"""Files without a row, and rows without their file."""

import shutil
from pathlib import Path

import pytest

from storage.file_listing import list_files, unmatched_files
from storage.files import TEMPORARY_SUFFIX
from storage.manifest import Manifest


@pytest.fixture
def committed(dataset) -> Manifest:
    """Return a manifest of two samples each of two simulations."""
    dataset.commit("SB35_0")
    dataset.commit("SB35_1", split="test")
    return dataset.open()


def test_a_data_set_may_be_in_order(committed: Manifest) -> None:
    """Where every row has its file and there is no other, nothing is lost, orphaned or waiting."""
    found = unmatched_files(committed.layout)
    assert (found.lost, found.orphaned, found.waiting, found.sound) == ({}, {}, {}, True)


def test_what_has_no_counterpart_is_named_by_simulation(committed: Manifest) -> None:
    """Lost files and orphans stand under the simulation whose folder they belong to, others under no name."""
    root = committed.layout.root
    lost = committed.samples().filter(simulation="SB35_1")["path"][0]
    (root / lost).unlink()
    strays = [
        "test/sim_0/sim_0_halo_0_rot_0.npz",
        "train/halo.npz",
        "train/sim_0/deep/er/note",
        "train/sim_0/sim_0_halo_9_rot_0.npz",
    ]
    for stray in strays:
        (root / stray).parent.mkdir(parents=True, exist_ok=True)
        (root / stray).touch()
    found = unmatched_files(committed.layout)
    assert found.lost == {"SB35_1": (lost,)}
    assert found.orphaned == {"SB35_0": (strays[0], *strays[2:]), "": (strays[1],)}
    assert not found.sound


@pytest.mark.parametrize(("name", "sound"), [("notes.txt", True), ("sim_0_halo_7_rot_0.npz", False)])
def test_only_what_readers_take_for_a_sample_does_harm(committed: Manifest, name: str, sound: bool) -> None:
    """A note in a folder is an orphan that spoils nothing; a file that is called like a sample does."""
    (committed.layout.root / "train" / "sim_0" / name).touch()
    found = unmatched_files(committed.layout)
    assert found.orphaned == {"SB35_0": (f"train/sim_0/{name}",)}
    assert found.sound is sound


def test_what_is_being_written_does_not_count(committed: Manifest) -> None:
    """The temporary file of a write is no orphan."""
    (committed.layout.root / f"train/sim_0/.sim_0_halo_9_rot_0.npz.{'0' * 16}{TEMPORARY_SUFFIX}").touch()
    assert unmatched_files(committed.layout).orphaned == {}
    assert list_files(committed.layout).height == 4


def test_links_are_listed_and_not_followed(committed: Manifest, tmp_path: Path) -> None:
    """A link to a folder, which may lead in a circle, is one orphan; a broken link in a sample's place has no size."""
    folder = committed.layout.root / "train" / "sim_0"
    (folder / "circle").symlink_to(folder)
    path = committed.samples()["path"][0]
    (committed.layout.root / path).unlink()
    (committed.layout.root / path).symlink_to(tmp_path / "nowhere")
    found = unmatched_files(committed.layout)
    assert (found.lost, found.orphaned) == ({}, {"SB35_0": ("train/sim_0/circle",)})
    sizes = dict(list_files(committed.layout).iter_rows())
    assert sizes[path] is sizes["train/sim_0/circle"] is None


def test_a_data_set_without_folders_has_lost_all(dataset) -> None:
    """Rows whose split has no folder at all are lost, and nothing fails."""
    dataset.commit("SB35_0")
    shutil.rmtree(dataset.root / "train")
    assert len(unmatched_files(dataset.layout).lost["SB35_0"]) == 2
