"""Commits of several writers to one manifest, where no lock keeps them apart, and of one without the right."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import storage.manifest as manifest_module
from storage.columns import ManifestError
from storage.lease import Lease, LeaseLostError, writing
from storage.manifest import open_dataset


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody wait for anybody, as on a file system that knows no locks."""

    @contextmanager
    def unlocked(_: Path) -> Iterator[None]:
        yield

    monkeypatch.setattr(manifest_module, "one_at_a_time", unlocked)


@pytest.mark.usefixtures("without_locks")
def test_first_commits_without_locks_all_arrive(dataset) -> None:
    """Even of first commits at the same time none is lost or refused, where the file system knows no locks."""
    names = [f"SB35_{number}" for number in range(6)]
    rows = {name: (dataset.sample_rows(name), dataset.simulation_rows(name)) for name in names}
    start, failures = threading.Barrier(len(names)), []

    def commit(name: str) -> None:
        start.wait()
        try:
            dataset.open().commit(*rows[name], "run")
        except Exception as error:  # whatever it is, the test fails
            failures.append(error)

    threads = [threading.Thread(target=commit, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    samples = dataset.open().samples()
    assert samples.height == samples["sample_id"].n_unique() == 2 * len(names)
    assert dataset.open().latest_simulations()["simulation"].to_list() == names


@pytest.fixture
def lease(dataset) -> Iterator[Lease]:
    with writing(dataset.layout, "bind-data generate", "run") as lease:
        yield lease


def between(lease: Lease, happens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let something happen once between a commit's look at the manifest and its write."""
    check = lease.check

    def checked() -> None:
        monkeypatch.setattr(lease, "check", check)
        check()
        happens()

    monkeypatch.setattr(lease, "check", checked)


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("first", [True, False])
def test_another_commit_in_between_is_taken_into_account(dataset, lease, monkeypatch, first: bool) -> None:
    """A commit that another one outruns is made on top of that."""
    if not first:
        dataset.commit("SB35_9")
    manifest = open_dataset(dataset.layout, dataset.config, lease)
    between(lease, lambda: dataset.commit("SB35_1"), monkeypatch)
    manifest.commit(dataset.sample_rows("SB35_0"), dataset.simulation_rows("SB35_0"), "run")
    assert manifest.samples()["simulation"].unique().sort().to_list() == ["SB35_0", "SB35_1", "SB35_9"][: 3 - first]


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("first", [True, False])
def test_a_sample_that_came_in_between_is_not_recorded_twice(dataset, lease, monkeypatch, first: bool) -> None:
    """Of two writers of the same samples, the slower one is refused, however close they are."""
    if not first:
        dataset.commit("SB35_9")
    manifest = open_dataset(dataset.layout, dataset.config, lease)
    rows = dataset.sample_rows("SB35_0"), dataset.simulation_rows("SB35_0")
    between(lease, lambda: dataset.open().commit(*rows, "run"), monkeypatch)
    with pytest.raises(ManifestError, match=r"are in the manifest of .* already"):
        manifest.commit(*rows, "run")
    assert not manifest.samples()["sample_id"].is_duplicated().any()


def test_a_writer_that_lost_its_right_commits_nothing(dataset, lease) -> None:
    """Rows of a run that was taken for dead are not recorded, nor are doubled rows removed by it."""
    dataset.commit("SB35_9")
    manifest = open_dataset(dataset.layout, dataset.config, lease)
    for heartbeat in dataset.layout.lease_folder.glob("*.alive"):
        heartbeat.unlink()  # by which others take it for dead
    with writing(dataset.layout, "bind-data repair", "taker"):
        before = manifest.state
        for forbidden in (
            lambda: manifest.commit(dataset.sample_rows("SB35_0"), dataset.simulation_rows("SB35_0"), "run"),
            lambda: manifest.remove_duplicates("run"),
        ):
            with pytest.raises(LeaseLostError, match="bind-data repair"):
                forbidden()
        assert manifest.state == before
