"""The benchmark of readers, on a small data set: that it compares readers of the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench import program, readers
from bench.cached_pages import cached_share, drop_cached
from bench.program import Case

pytestmark = pytest.mark.timeout(300)
SMALL = Case(32, halos=2, rotations=3)
SAMPLES = 36


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of some samples, with its packs."""
    folder = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "DATA", folder)
        readers.make_dataset(folder / "dataset", SAMPLES, SMALL)
    return folder / "dataset"


def test_all_readers_give_the_same_samples(root: Path) -> None:
    """Tree, manifest, shards and tar files give as many samples as were asked for, with the same bytes."""
    runs = {name: readers.run_apart(name, root, 1, SAMPLES, digest=True) for name in readers.READERS}
    assert {name: run.samples for name, run in runs.items()} == dict.fromkeys(readers.READERS, SAMPLES)
    assert len({run.digest for run in runs.values()}) == 1
    assert len({replace(run, first_batch=0.0, per_second=0.0) for run in runs.values()}) == 1
    assert all(run.first_batch > 0 and run.per_second > 0 for run in runs.values())


def test_files_can_be_put_out_of_memory(root: Path) -> None:
    """What was just read lies in memory, and no longer when it was dropped; every reader has files of its own kind."""
    for name in readers.READERS:
        files = readers.files_of(name, root)
        assert sum(len(path.read_bytes()) for path in files) > 0
        assert cached_share(files) == 1
        drop_cached(files)
        assert cached_share(files) < 0.5


def test_the_table_holds_ratios_to_the_tree() -> None:
    """A reader that is twice as fast and starts in half the time is 2.00 times as good, both ways."""
    figures = {
        "cold, first batch, s": 4.0,
        "cold, samples/s": 100.0,
        "warm, first batch, s": 2.0,
        "warm, samples/s": 300.0,
        "cached at the cold start": 0.0,
    }
    better = {
        name: value * (2 if name.endswith("samples/s") else 0.5) if value else value for name, value in figures.items()
    }
    results = {"samples": 20_000, "mean bytes": 150e3, "read": 6400, "readers": {"tree": figures, "shards": better}}
    tree, shards = readers.table(results).splitlines()[-2:]
    assert tree.count("1.00") == 4
    assert shards.count("2.00") == 4
