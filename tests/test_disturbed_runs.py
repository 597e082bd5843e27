"""The batch program disturbed for real: kills, interrupts, full disks, and another run at the same time."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from batch_runs import (
    LONG,
    TIMEOUT,
    assert_same,
    bases,
    digests,
    message_of,
    output,
    processes,
    ranks_of,
    run,
    sample_rows,
    start,
    temporaries,
    wait_for,
)

from storage.mock_suite import MockSuite, write_mock_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    """Three sound simulations, each in another layout; tests must not change them."""
    return write_mock_suite(tmp_path_factory.mktemp("suite"), simulations=3, particles_per_side=16)


@pytest.fixture(scope="module")
def undisturbed(suite: MockSuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the data set of a long run that nothing disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    output(run(*bases(suite), *LONG, "--output_base_root", root))
    return root


@pytest.fixture
def by_one(tmp_path: Path) -> Path:
    """Return a configuration with a commit after each simulation."""
    file = tmp_path / "by_one.yaml"
    file.write_text("simulations_per_block: 1\n")
    return file


def kill_all(mark: str) -> int:
    """Kill every process that has a text in its command line; return how many there were."""
    killed = 0
    for process in processes(mark):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed += 1
    return killed


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("ranks", "moment"),
    [(0, "half way"), (0, "first commit"), (2, "first sample"), (2, "second commit")],
)
def test_a_killed_run_can_be_repeated(
    suite: MockSuite, undisturbed: Path, by_one: Path, tmp_path: Path, ranks: int, moment: str
) -> None:
    """After kill -9 at any moment no sample is half written, and the same command gives what nothing disturbed."""
    root = tmp_path / "out"
    commits = root / "manifest" / "samples" / "_delta_log"
    reached = {
        "first sample": lambda: digests(root),
        "half way": lambda: len(digests(root)) > len(digests(undisturbed)) // 2,
        "first commit": (commits / f"{0:020}.json").exists,
        "second commit": (commits / f"{1:020}.json").exists,
    }[moment]
    asked = [*bases(suite), *LONG, "--config", by_one, "--output_base_root", root]
    process = start(*asked, ranks=ranks)
    wait_for(lambda: reached() or process.poll() is not None, moment)
    assert kill_all(str(root)) > 0
    process.communicate(timeout=TIMEOUT)
    wait_for(lambda: not processes(str(root)), "the end of all processes")
    assert digests(root).items() <= digests(undisturbed).items()
    output(run(*asked, ranks=ranks))
    assert_same(root, undisturbed)


@pytest.mark.mpi
@pytest.mark.parametrize("victim", ["first rank", "mpiexec"])
def test_a_killed_process_ends_the_job(
    suite: MockSuite, undisturbed: Path, by_one: Path, tmp_path: Path, victim: str
) -> None:
    """If a rank or the launcher is killed, all ranks end, with a status, and the run can be repeated."""
    root = tmp_path / "out"
    asked = [*bases(suite), *LONG, "--config", by_one, "--output_base_root", root]
    process = start(*asked, ranks=2)
    wait_for(lambda: digests(root), "the first sample")
    os.kill(process.pid if victim == "mpiexec" else min(ranks_of(str(root))), signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode != 0
    wait_for(lambda: not processes(str(root)), "the end of all ranks")
    assert digests(root).items() <= digests(undisturbed).items()
    output(run(*asked, ranks=2))
    assert_same(root, undisturbed)


def test_an_interrupted_run_says_how_to_go_on(suite: MockSuite, by_one: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a run with a line that says what to do, and nothing is half written."""
    root = tmp_path / "out"
    process = start(*bases(suite), *LONG, "--config", by_one, "--output_base_root", root)
    wait_for(lambda: digests(root), "the first sample")
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, said + errors
    assert "Interrupted. What was recorded stays" in errors
    assert "Traceback" not in errors
    assert not temporaries(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.mpi
def test_a_full_disk_does_no_damage(suite: MockSuite, undisturbed: Path, by_one: Path, small_disk: Path) -> None:
    """A full disk is said, what was recorded stays whole, and with more room the same command completes it."""
    root = small_disk / "out"
    asked = [*bases(suite), *LONG, "--config", by_one, "--output_base_root", root]
    message_of(run(*asked, ranks=2), "Cannot write", "are free on that file system")
    assert not temporaries(root)
    assert digests(root).items() <= digests(undisturbed).items()
    rows = sample_rows(root)
    assert dict(zip(rows["path"], rows["sha256"], strict=True)).items() <= digests(root).items()
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    output(run(*asked, ranks=2))
    assert_same(root, undisturbed)
