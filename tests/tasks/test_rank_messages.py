"""What ranks say to people, and how it is told from chatter."""

import logging

import pytest
from batch_runs import run_mpi

from tasks.projection import _MOST_LOGGED, _logs_to
from tasks.rank_messages import level_of

SOURCE = """
import logging, threading, warnings
from mpi4py import MPI
from tasks.rank_messages import RankMessages
rank = MPI.COMM_WORLD.rank
messages = RankMessages(rank)
messages.collect()
messages.begin(f"SB35_{rank}")
messages.say(logging.ERROR, "two\\n  lines")
logging.getLogger("reader").warning("slow %s", "disk")
logging.getLogger("reader").info("chatter")
print("chatter", flush=True)
thread = threading.Thread(target=lambda: warnings.warn("reading the next one", UserWarning))
thread.start()
thread.join()
"""


@pytest.mark.mpi
def test_every_rank_says_who_it_is_and_what_it_is_about() -> None:
    """Messages, warnings and log records of each rank are one line each, with the rank and the simulation."""
    done = run_mpi(SOURCE, 2)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        lines = [line for line in done.stderr.splitlines() if f" rank {rank}" in line]
        assert lines[:2] == [
            f"ERROR rank {rank}, SB35_{rank}: two | lines",
            f"WARNING rank {rank}, SB35_{rank}: reader: slow disk",
        ]
        assert len(lines) == 3
        assert lines[2].startswith(f"WARNING rank {rank}: UserWarning: reading the next one (")
    assert "chatter" not in done.stderr


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("ERROR rank 12, SB35_3: cannot read", logging.ERROR),
        ("WARNING rank 0: odd", logging.WARNING),
        ("srun: error: vm: task 0: Killed", logging.WARNING),
        ("  ERROR rank 1: quoted", logging.WARNING),
    ],
)
def test_levels_are_read_from_the_line(line: str, level: int) -> None:
    """A rank's errors are errors; whatever else stands on standard error is a warning."""
    assert level_of(line) == level


def test_the_log_is_not_flooded(caplog: pytest.LogCaptureFixture) -> None:
    """Of very many lines, the first are logged, and then where the rest is."""
    log = _logs_to(logging.getLogger("run"))
    for number in range(_MOST_LOGGED + 500):
        log("" if number % 2 else f"ERROR rank 0: {number}")
        log(f"line {number}")
    assert len(caplog.records) == _MOST_LOGGED + 1
    assert [record.levelno for record in caplog.records[:2]] == [logging.ERROR, logging.WARNING]
    assert "errors.log" in caplog.records[-1].getMessage()
