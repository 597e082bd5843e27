"""Snapshots that were touched are read once, and not by every command that asks."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from block_runs import layout_of, make, work_of

from bind_core import inputs
from bind_core.config import DatasetConfig
from storage import digest_memory
from storage.mock_suite import MockSuite
from storage.staleness import Cause
from storage.workload import Reason

pytestmark = pytest.mark.mpi

LONG_AGO = 1_000_000_000


@pytest.fixture
def suite(mock_suite: Callable[..., MockSuite]) -> MockSuite:
    return mock_suite(simulations=1, particles_per_side=8, halos_per_simulation=1)


@pytest.fixture
def config(suite: MockSuite, config_of: Callable[..., DatasetConfig], tmp_path: Path) -> DatasetConfig:
    made = config_of(suite, output_root=tmp_path / "set", resolution=16, strata=[{"rotations": 1}])
    make(made)
    return made


@pytest.fixture
def snapshot(suite: MockSuite) -> Path:
    return next((suite.hydro_base / "SB35_0").rglob("*.hdf5"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the snapshots that have been read, which grows."""
    read: list[Path] = []

    def counted(path: Path, *arguments: object) -> str:
        read.append(path)
        return inputs.read_snapshot_digest(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(digest_memory, "read_snapshot_digest", counted)
    return read


def memory_of(config: DatasetConfig) -> Path:
    return layout_of(config).work_folder / "snapshot_digests.json"


def raise_masses(path: Path) -> None:
    """Make a valid file of the same size with other content."""
    with h5py.File(path, "r+") as file:
        table = file["Header"].attrs["MassTable"]
        file["Header"].attrs.modify("MassTable", table * 1.001)


def test_a_touched_snapshot_is_read_once(config: DatasetConfig, snapshot: Path, reads: list[Path]) -> None:
    """Asked three times, it is read the first time, and the answer stays: touched, with the content of before."""
    os.utime(snapshot, (LONG_AGO, LONG_AGO))
    assert [work_of(config, "SB35_0").reason for _ in range(3)] == [Reason.TOUCHED] * 3
    assert reads == [snapshot]


def test_a_changed_snapshot_is_read_once_and_again_when_it_changes(
    config: DatasetConfig, snapshot: Path, reads: list[Path]
) -> None:
    """What is remembered holds for one size and time: of the next change nothing is taken for known."""
    before = snapshot.read_bytes()
    raise_masses(snapshot)
    os.utime(snapshot, (LONG_AGO, LONG_AGO))
    for _ in range(2):
        (group,) = work_of(config, "SB35_0").stale
        assert group.causes == (Cause.INPUT,)
    assert reads == [snapshot]
    snapshot.write_bytes(before)
    os.utime(snapshot, (LONG_AGO + 1, LONG_AGO + 1))
    assert work_of(config, "SB35_0").reason is Reason.TOUCHED
    assert reads == [snapshot] * 2


def test_a_file_that_may_still_change_unnoticed_is_not_remembered(
    config: DatasetConfig, snapshot: Path, reads: list[Path]
) -> None:
    """A file of the last seconds could be written again with the same time: it is read each time."""
    os.utime(snapshot)
    for _ in range(2):
        assert work_of(config, "SB35_0").reason is Reason.TOUCHED
    assert reads == [snapshot] * 2
    assert not memory_of(config).exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', "swapped"])
def test_a_memory_that_is_damaged_is_none(
    config: DatasetConfig, snapshot: Path, reads: list[Path], content: str
) -> None:
    """What cannot be read, or belongs to other settings, is as if it were not there."""
    os.utime(snapshot, (LONG_AGO, LONG_AGO))
    work_of(config, "SB35_0")
    memory = memory_of(config)
    values = json.loads(memory.read_text())
    values[str(snapshot)]["config_digest"] = "0" * 64
    memory.write_text(json.dumps(values) if content == "swapped" else content)
    assert work_of(config, "SB35_0").reason is Reason.TOUCHED
    assert reads == [snapshot] * 2


def test_nothing_need_be_remembered(config: DatasetConfig, snapshot: Path, reads: list[Path]) -> None:
    """Where nothing can be written down, the answer is the same, and the file is read each time."""
    memory_of(config).mkdir(parents=True)
    os.utime(snapshot, (LONG_AGO, LONG_AGO))
    assert [work_of(config, "SB35_0").reason for _ in range(2)] == [Reason.TOUCHED] * 2
    assert reads == [snapshot] * 2
