"""What the ranks of a node share, on real ranks."""

import pytest
from batch_runs import last_line, run_mpi

pytestmark = pytest.mark.mpi

PREAMBLE = """
import json, time
import numpy as np
from mpi4py import MPI
from bind_core.errors import BindDataError
from storage.files import StorageFullError
from tasks.shared_memory import dealt_out, shared_array, together
comm = MPI.COMM_WORLD
def show(mine):
    gathered = comm.gather(mine)
    if comm.rank == 0:
        print(json.dumps(gathered), flush=True)
"""


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_each_number_is_dealt_once(ranks: int) -> None:
    """All numbers are dealt out, each to one rank, however often; none and fewer than ranks are possible."""
    source = """
hands = []
for count in (0, 1, 2, 103, 5):
    with dealt_out(comm, count) as numbers:
        hands.append(list(numbers))
show(hands)
"""
    hands = last_line(run_mpi(PREAMBLE + source, ranks))
    assert len(hands) == ranks
    for turn, count in enumerate((0, 1, 2, 103, 5)):
        assert sorted(number for rank in hands for number in rank[turn]) == list(range(count))


def test_a_slow_rank_gets_fewer_numbers() -> None:
    """Numbers are dealt as they are asked for: while one rank is busy, the other takes the rest."""
    source = """
mine = []
with dealt_out(comm, 40) as numbers:
    for number in numbers:
        mine.append(number)
        time.sleep(2.0 if comm.rank == 0 else 0.002)
show(len(mine))
"""
    slow, quick = last_line(run_mpi(PREAMBLE + source, 2))
    assert slow + quick == 40
    assert slow < quick


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_an_array_is_one_for_all_ranks(ranks: int) -> None:
    """What one rank writes into a shared array, all ranks read; an empty array is possible."""
    source = """
with shared_array(comm, (comm.size, 3), np.float32) as array:
    clean = float(abs(array).sum())
    comm.Barrier()
    array[comm.rank] = comm.rank + 1
    comm.Barrier()
    seen = array.tolist()
    comm.Barrier()
with shared_array(comm, (0, 3), np.float32) as empty:
    shape = empty.shape
show([clean, seen, shape])
"""
    for clean, seen, shape in last_line(run_mpi(PREAMBLE + source, ranks)):
        assert clean == 0.0
        assert seen == [[rank + 1.0] * 3 for rank in range(ranks)]
        assert shape == [0, 3]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_failure_of_one_rank_is_that_of_all(ranks: int) -> None:
    """An error on some ranks is raised on all of them: that of the lowest, with its type and what it carries."""
    source = """
from pathlib import Path
def fail():
    if comm.rank == comm.size - 1:
        raise StorageFullError("last", Path("/somewhere"), 7)
    if comm.rank == comm.size - 2:
        raise BindDataError("last but one")
    return comm.rank
try:
    together(comm, fail)
    mine = "nothing"
except BindDataError as error:
    mine = [type(error).__name__, str(error), getattr(error, "bytes_free", None)]
show([mine, together(comm, lambda: comm.rank)])
"""
    seen = last_line(run_mpi(PREAMBLE + source, ranks))
    expected = ["StorageFullError", "last", 7] if ranks == 1 else ["BindDataError", "last but one", None]
    assert seen == [[expected, rank] for rank in range(ranks)]


def test_failures_release_what_was_shared() -> None:
    """After hundreds of failures inside shared arrays and dealings, the ranks still work together."""
    source = """
def fail():
    if comm.rank == 1:
        raise BindDataError("one of many")
caught = 0
for _ in range(300):
    try:
        with shared_array(comm, (1000, 1000), np.float32) as array, dealt_out(comm, 3) as numbers:
            array[...] = 1
            next(numbers, None)
            together(comm, fail)
    except BindDataError:
        caught += 1
show(caught)
"""
    assert last_line(run_mpi(PREAMBLE + source, 2)) == [300, 300]


def test_an_unexpected_error_of_one_rank_ends_the_job() -> None:
    """An error that is none of ours, on one rank inside shared contexts, ends all ranks instead of hanging them."""
    source = """
with shared_array(comm, (10,), np.float32) as array, dealt_out(comm, 10) as numbers:
    if comm.rank == 1:
        raise ValueError("nobody expected this")
    together(comm, lambda: None)
"""
    done = run_mpi(PREAMBLE + source, 3)
    assert done.returncode != 0
    assert "nobody expected this" in done.stderr
