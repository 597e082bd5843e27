"""What a run will write is compared with what is free, before anything is read or written."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from batch_runs import bases, is_whole, message_of, output, run
from block_runs import make, manifest_of, project, workload_of

from bind_core.config import DatasetConfig, Stratum
from storage.mock_suite import MockSuite, write_mock_suite
from storage.room import NoRoomError, disk_need, require_room
from storage.workload import plan_workload

RESOLUTION = 128
KIB = 1 << 10


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Return one simulation of one halo; tests must not change it."""
    root = tmp_path_factory.mktemp("suite")
    return write_mock_suite(root, simulations=1, particles_per_side=16, halos_per_simulation=1)


def config_of(suite: MockSuite, root: Path, rotations: int) -> DatasetConfig:
    return DatasetConfig(
        dmo_base=suite.dmo_base,
        hydro_base=suite.hydro_base,
        catalogue_base=suite.catalogue_base,
        output_root=root,
        resolution=RESOLUTION,
        strata=(Stratum(rotations=rotations),),
    )


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a file system of 1 MiB."""
    with mounted(tmp_path / "disk", "size=1m"):
        yield tmp_path / "disk"


def test_a_run_that_cannot_fit_is_refused_and_one_that_can_is_made(suite: MockSuite, small_disk: Path) -> None:
    """Fifty samples that take 1.09 MiB at least are refused on a disk of 1 MiB, with all numbers; two are made there.

    The one that is refused reads and writes nothing; of the one that is made, it is said that it may not fit.
    """
    asked = [*bases(suite), "--resolution", RESOLUTION, "--output_base_root", small_disk / "out"]
    said = message_of(
        run(*asked, "--num_rotations", 50),
        f"NoRoomError: output_root: {small_disk / 'out'} has no room",
        "1.09 MiB to 22.6",
        "for 50 samples",
        "448.00 KiB each, of which compressed files of 0.0039 particles in a pixel take 5% to 102%",
        f"On the file system of {small_disk}, 1.00 MiB are free",
        "Nothing was read or written. Free some space",
    )
    assert "samples (SB35_0" not in said  # progress
    assert list(small_disk.iterdir()) == []
    message_of(run(*asked, "--num_rotations", 50, "--dry_run"), "50 samples to be made", "NoRoomError: output_root: ")
    made = output(run(*asked, "--num_rotations", 2)).replace("\n", " ")
    assert "may become too small for what this run writes: 44.80 KiB to 925.96 KiB" not in made
    assert is_whole(small_disk / "out")


def test_what_may_not_fit_is_warned_of(suite: MockSuite, small_disk: Path) -> None:
    """Three samples take 1.4 MiB at most: it is said once that a disk of 1 MiB may be too small for them."""
    config = config_of(suite, small_disk / "out", 3)
    told: list[str] = []
    require_room(config, manifest_of(config), workload_of(config), told.append)
    (warning,) = told
    assert "may become too small for what this run writes: 67.20 KiB to 1." in warning
    assert "1.00 MiB are free" in warning
    assert not config.output_root.exists()


def filled(disk: Path, left: int) -> None:
    """Leave so many bytes free on a disk."""
    (disk / "filler").unlink(missing_ok=True)
    there = os.statvfs(disk)
    with (disk / "filler").open("wb") as stream:
        stream.write(bytes(there.f_bavail * there.f_frsize - left))


def test_files_that_a_killed_run_has_left_need_no_further_room(suite: MockSuite, small_disk: Path) -> None:
    """On a disk that is nearly full of a run's own samples without rows, the run may go on; without them it may not."""
    config = config_of(suite, small_disk / "out", 16)
    left = project(config).paths(config)
    assert len(left) == 16
    filled(small_disk, 64 * KIB)
    workload, manifest = workload_of(config), manifest_of(config)
    assert disk_need(config, manifest, workload).least > 64 * KIB
    require_room(config, manifest, workload, lambda warning: None)
    for path in left:
        path.unlink()
    filled(small_disk, 64 * KIB)
    with pytest.raises(NoRoomError, match=r"358\.40 KiB to .* 64\.00 KiB are free"):
        require_room(config, manifest, workload, lambda warning: None)


def test_samples_made_anew_need_room_of_their_own(suite: MockSuite, small_disk: Path) -> None:
    """What is replaced is kept, so a refresh of all samples needs room for all of them again."""
    config = config_of(suite, small_disk / "out", 8)
    make(config)
    ids = manifest_of(config).samples()["sample_id"].to_list()
    workload = plan_workload(config, manifest_of(config), remake=ids)
    assert workload.samples == 8
    filled(small_disk, 64 * KIB)
    with pytest.raises(NoRoomError, match=r"those 8 of the same settings that exist have .* 64\.00 KiB are free"):
        require_room(config, manifest_of(config), workload, lambda warning: None)


def test_a_disk_without_room_for_more_files_is_refused(suite: MockSuite, tmp_path: Path) -> None:
    """Where inodes run out before bytes do, the number of files is told."""
    with mounted(tmp_path / "disk", "size=100m,nr_inodes=12"):
        config = config_of(suite, tmp_path / "disk" / "out", 20)
        with pytest.raises(NoRoomError, match=r"no room for the 20 files .* 11 more can be made \(inodes\)"):
            require_room(config, manifest_of(config), workload_of(config), lambda warning: None)


@pytest.mark.camels_mini
def test_estimates_hold_what_real_simulations_take(camels_mini: Path, tmp_path: Path) -> None:
    """What is written lies between both estimates: those without any sample, and the narrower ones with some."""

    def config(rotations: int) -> DatasetConfig:
        return DatasetConfig(
            dmo_base=camels_mini / "DMO",
            hydro_base=camels_mini / "Hydro",
            catalogue_base=camels_mini / "FOF",
            output_root=tmp_path,
            resolution=RESOLUTION,
            strata=(Stratum(min_mass=7e13, rotations=rotations),),
        )

    def made(rotations: int) -> tuple[int, int, int]:
        asked = config(rotations)
        need = disk_need(asked, manifest_of(asked), workload_of(asked))
        before = sum(manifest_of(asked).samples()["bytes"])
        make(asked)
        return need.least, sum(manifest_of(asked).samples()["bytes"]) - before, need.most

    least, written, most = made(1)
    assert least < written < most
    again_least, again, again_most = made(2)
    assert again_least < again < again_most
    assert again_most / again_least < most / least
