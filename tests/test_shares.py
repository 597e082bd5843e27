"""Batch runs that make the shares of one data set at the same time."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_runs import REPOSITORY, bases, command, digests, environment, run, sample_rows, statuses

from bind_core.config import DatasetConfig
from bind_core.errors import ConfigurationError
from bind_core.plan import Share
from storage.files import held, is_held, one_at_a_time
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.mock_suite import MockSuite, write_mock_suite

SMALL = ("--resolution", "16", "--num_rotations", "2")
RUNS = 4


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    return write_mock_suite(
        tmp_path_factory.mktemp("suite"), simulations=6, particles_per_side=8, halos_per_simulation=1
    )


def all_shares(suite: MockSuite, root: Path, *flags: str) -> None:
    """Make all shares at the same time; each run must succeed."""
    runs = [
        subprocess.Popen(
            command(*bases(suite), "--output_base_root", root, *SMALL, "--share", f"{number}/{RUNS}", *flags),
            env=environment(),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(RUNS)
    ]
    said = [process.communicate(timeout=300)[0] for process in runs]
    assert [process.returncode for process in runs] == [0] * RUNS, "\n".join(said)


@pytest.mark.mpi
def test_runs_of_all_shares_make_one_data_set_at_the_same_time(suite: MockSuite, tmp_path: Path) -> None:
    """Fresh or refreshed, every sample is made and recorded once, as one run alone makes it."""
    root, alone = tmp_path / "set", tmp_path / "alone"
    all_shares(suite, root)
    assert run(*bases(suite), "--output_base_root", alone, *SMALL).returncode == 0
    assert digests(root) == digests(alone)
    all_shares(suite, root, "--refresh", "--seed", "7")
    rows = sample_rows(root)
    assert rows.height == rows["sample_id"].n_unique() == len(digests(alone))
    assert {path: sha256 for path, sha256 in digests(root).items() if not path.startswith("superseded")} == dict(
        rows.select("path", "sha256").rows()
    )
    assert set(statuses(root).values()) == {"complete"}
    assert len(statuses(root)) == len(suite.names)
    assert not DatasetLayout(root, "SB35").staging_folder.exists()
    assert Manifest(DatasetLayout(root, "SB35")).simulations().height == 2 * len(suite.names)


@pytest.mark.mpi
def test_a_share_without_simulations_is_done(suite: MockSuite, tmp_path: Path) -> None:
    """An array with more tasks than simulations succeeds in all of them."""
    done = run(*bases(suite), "--output_base_root", tmp_path, "--share", "99/100")
    assert done.returncode == 0, done.stderr
    skipping = run(*bases(suite), "--output_base_root", tmp_path, "--total_sims=9", "--skip_missing", "--share", "8/9")
    assert skipping.returncode == 0, skipping.stderr


@pytest.mark.parametrize("of", [1, 3, 7, 50])
def test_shares_divide_a_suite(suite: MockSuite, config_of: Callable[..., DatasetConfig], of: int) -> None:
    """Every simulation is in one share, whatever else exists; numbered ones are dealt out evenly."""
    config = config_of(suite)
    names = [f"SB35_{number}" for number in range(20)] + ["SB35_p1_n2", "SB35_p1_0"]
    shares = [Share(number, of).of_simulations(names, config) for number in range(of)]
    assert sorted(name for share in shares for name in share) == sorted(names)
    numbered = [sum(name.removeprefix("SB35_").isdecimal() for name in share) for share in shares]
    assert max(numbered) - min(numbered) <= 1
    assert [Share(number, of).of_simulations(names[::2], config) for number in range(of)] == [
        [name for name in share if name in names[::2]] for share in shares
    ]


@pytest.mark.parametrize("text", ["3/3", "-1/3", "1", "a/b", "0/0"])
def test_what_is_no_share_is_refused(text: str) -> None:
    """A share that is not one of its whole is refused, with an example."""
    with pytest.raises(ConfigurationError, match="expected I/N"):
        Share.from_text(text)
    assert Share.from_text("3/16") == Share(3, 16)


def test_a_lock_file_tells_who_lives(tmp_path: Path) -> None:
    """A file counts as held as long as anybody holds it, is gone after the last, and a killed holder holds nothing."""
    file = tmp_path / "folder" / "lock"
    assert not is_held(file)
    with held(file):
        with held(file):
            assert is_held(file)
        assert is_held(file)
    assert not file.exists()
    child = os.fork()
    if child == 0:
        with held(file):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert file.exists()
    assert not is_held(file)


def test_only_one_process_at_a_time(tmp_path: Path) -> None:
    """What several processes do one at a time is not interleaved."""
    log, children = tmp_path / "log", []
    for _ in range(4):
        children.append(os.fork())
        if children[-1] == 0:
            for _ in range(20):
                with one_at_a_time(tmp_path / "lock"), log.open("a") as file:
                    for word in ("in", "out"):
                        file.write(f"{os.getpid()} {word}\n")
                        file.flush()
            os._exit(0)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    words = log.read_text().split("\n")[:-1]
    assert len(words) == 160
    assert all(line.replace(" in", " out") == after for line, after in zip(words[::2], words[1::2], strict=True))
