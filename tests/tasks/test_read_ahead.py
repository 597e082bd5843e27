"""Reading the next particles in the background changes nothing but the time it takes."""

import threading
from pathlib import Path

import pytest
from batch_runs import digests
from block_runs import project

from bind_core.config import DatasetConfig, Stratum
from bind_core.errors import SnapshotError
from bind_core.snapshot import Component
from storage.mock_suite import Defect, MockFormat, MockSuite, SnapshotLayout, write_mock_suite
from tasks import simulation_job
from tasks.node_memory import memory_bytes
from tasks.read_ahead import ReadAhead, reads_ahead

ALWAYS, NEVER = 0.0, 1e9


def config_of(suite: MockSuite, root: Path, read_ahead_memory: float) -> DatasetConfig:
    return DatasetConfig(
        dmo_base=suite.dmo_base,
        hydro_base=suite.hydro_base,
        catalogue_base=suite.catalogue_base,
        parameter_file=suite.parameter_file,
        output_root=root,
        resolution=32,
        strata=(Stratum(rotations=2),),
        read_ahead_memory=read_ahead_memory,
    )


def test_what_was_begun_is_done_in_another_thread_and_once() -> None:
    """What is asked for after it was begun has been done in the background, and is not done again."""
    threads = []
    with ReadAhead[int](enabled=True) as ahead:
        ahead.start("a", lambda: threads.append(threading.current_thread()) or 1)
        assert ahead.take("a", lambda: 2) == 1
        assert ahead.take("a", lambda: 2) == 2
    assert threads != [threading.current_thread()]
    assert len(threads) == 1


def test_something_else_is_done_at_once() -> None:
    """What was begun and is not what is asked for is forgotten."""
    with ReadAhead[int](enabled=True) as ahead:
        ahead.start("a", lambda: 1)
        assert ahead.take("b", lambda: 2) == 2
        assert ahead.take("a", lambda: 3) == 3


def test_an_error_in_the_background_is_raised_where_the_value_is_asked_for() -> None:
    """An error in the background is not lost, and comes when its value is asked for."""

    def fail() -> int:
        raise SnapshotError("damaged")

    with ReadAhead[int](enabled=True) as ahead:
        ahead.start("a", fail)
        with pytest.raises(SnapshotError, match="damaged"):
            ahead.take("a", lambda: 2)


def test_nothing_is_begun_where_it_is_off() -> None:
    """Without read-ahead, everything is done when it is asked for."""
    with ReadAhead[int](enabled=False) as ahead:
        ahead.start("a", lambda: 1)
        assert ahead.take("a", lambda: 2) == 2


def test_memory_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine, or a SLURM job, with less memory than the setting asks for reads nothing ahead."""
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    suite = MockSuite(tmp_path, tmp_path, tmp_path, tmp_path / "table", (), {})
    gib = memory_bytes() / 2**30
    assert reads_ahead(config_of(suite, tmp_path, gib / 2))
    assert not reads_ahead(config_of(suite, tmp_path, gib * 2))
    monkeypatch.setenv("SLURM_MEM_PER_NODE", str(int(gib * 1024 / 4)))
    assert not reads_ahead(config_of(suite, tmp_path, gib / 2))
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all that the node has
    assert reads_ahead(config_of(suite, tmp_path, gib / 2))


def test_samples_are_the_same_and_all_but_the_first_component_are_read_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two simulations, of which a third is damaged, give the same bytes and findings with and without read-ahead."""
    suite = write_mock_suite(
        tmp_path / "suite", simulations=3, particles_per_side=16, defects={"SB35_1": [Defect.NAN_POSITIONS]}
    )
    in_background = []
    read_share = simulation_job.SimulationJob._read_share

    def watched(job, source):  # type: ignore[no-untyped-def]
        in_background.append(threading.current_thread() is not threading.main_thread())
        return read_share(job, source)

    monkeypatch.setattr(simulation_job.SimulationJob, "_read_share", watched)
    with_it = project(config_of(suite, tmp_path / "with", ALWAYS))
    assert in_background == [False] + [True] * (3 * len(Component) - 1)
    in_background.clear()
    without = project(config_of(suite, tmp_path / "without", NEVER))
    assert not any(in_background)
    assert digests(tmp_path / "with") == digests(tmp_path / "without") != {}
    assert {name: result.findings for name, result in with_it.results.items()} == {
        name: result.findings for name, result in without.results.items()
    }
    assert with_it.results["SB35_1"].findings


@pytest.mark.parametrize("chunks", [1, 2, 5, 13])
def test_samples_do_not_depend_on_the_chunks_of_the_input(tmp_path: Path, chunks: int) -> None:
    """The same particles in one file or in many give the same bytes."""
    for name, form in {
        "one": MockFormat(),
        "many": MockFormat(
            dmo_layout=SnapshotLayout.CHUNKED_NEW, hydro_layout=SnapshotLayout.CHUNKED_OLD, chunks=chunks
        ),
    }.items():
        suite = write_mock_suite(tmp_path / name / "suite", simulations=1, particles_per_side=16, formats=[form])
        project(config_of(suite, tmp_path / name / "dataset", ALWAYS))
    assert digests(tmp_path / "one" / "dataset") == digests(tmp_path / "many" / "dataset") != {}
