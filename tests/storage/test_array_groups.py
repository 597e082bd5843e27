"""Groups of arrays, as they are made and made anew."""

import sys
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from storage import array_groups
from storage.array_groups import group_item, growing_group, is_group

HIDDEN = ".group.replaced"


def write(folder: Path, value: float) -> None:
    with growing_group(folder, {}) as group:
        group.add({"map": np.full((4, 4), value)})
        group.finish({})


def value_of(folder: Path) -> float:
    return float(group_item(folder, 0)["map"].mean())


@pytest.fixture
def plain_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file system on which folders cannot change places."""
    monkeypatch.setattr(array_groups, "_exchanged", lambda one, other: False)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets folders change places in one step")
def test_a_reader_finds_a_group_at_any_moment(tmp_path: Path) -> None:
    """While a group is replaced again and again, its name never points to nothing."""
    folder = tmp_path / "group"
    write(folder, 0)
    looks, misses, ended = 0, 0, Event()

    def look() -> None:
        nonlocal looks, misses
        while not ended.is_set():
            looks += 1
            misses += not folder.exists()

    reader = Thread(target=look)
    reader.start()
    for value in range(1, 101):
        write(folder, value)
    ended.set()
    reader.join()
    assert looks > 100
    assert misses == 0
    assert value_of(folder) == 100


@pytest.mark.usefixtures("plain_renames")
def test_a_group_is_replaced_without_an_exchange_too(tmp_path: Path) -> None:
    """Where folders cannot change places, the new group takes the name, and nothing is left beside it."""
    for value in (1, 2):
        write(tmp_path / "group", value)
    assert value_of(tmp_path / "group") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["group"]


def test_what_a_kill_between_two_renames_hid_comes_back(tmp_path: Path) -> None:
    """The older group, whose name a killed writer had taken away, has it again as soon as anybody writes there."""
    folder = tmp_path / "group"
    write(folder, 1)
    folder.rename(tmp_path / HIDDEN)

    def fail() -> None:
        with growing_group(folder, {}):
            assert is_group(folder)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert value_of(folder) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["group"]
