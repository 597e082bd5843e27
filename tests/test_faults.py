"""Every step at which a run can be disturbed, and every fault there: nothing is lost, and a rerun is as if nothing was.

`docs/reliability.md` holds what these tests have found, a row for each step. With ``BIND_DATA_WRITE_TABLE=1`` they
write it. What is quick to do is done always, the whole table with ``BIND_DATA_ALL_FAULTS=1``.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fault_runs
import polars as pl
import pytest
from batch_runs import REPOSITORY, wait_for
from fault_arena import (
    ACTIONS,
    ALL,
    PAGE,
    WRITING_AT_ONCE,
    Case,
    Undisturbed,
    check_cell,
    check_end,
    how,
    what_is_there,
)
from fault_runs import PATIENCE, Arena, Running, content, finish, leftovers

from storage.faults import VARIABLE, Action, Fault, Step
from storage.tables import append_rows

pytestmark = pytest.mark.mpi

G = (fault_runs.generate, fault_runs.nothing)
T = (fault_runs.two_ranks, fault_runs.nothing)
F = (fault_runs.flow, fault_runs.nothing)
CASES = [
    Case(Step.AFTER_PLANNING, *G),
    Case(Step.WITHIN_READING, *G, 6),
    Case(Step.BETWEEN_SAMPLES, *G, 2),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, *G, 2, "the lease"),
    Case(Step.BETWEEN_WRITE_AND_FSYNC, *G, 4, "a sample"),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, *G, 4, "a sample", is_stopped=True),
    Case(Step.BETWEEN_WRITE_AND_FSYNC, *G, 7, "`dataset.yaml`"),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, *G, 7, "`dataset.yaml`"),
    Case(Step.BETWEEN_RENAME_AND_COMMIT, *G, 2),
    Case(Step.WITHIN_COMMIT, *G, 1, is_stopped=True),
    Case(Step.WITHIN_COMPACTION, fault_runs.commit_often, fault_runs.nothing, 2),
    Case(Step.WITHIN_RESULT, fault_runs.block_job, fault_runs.nothing, 2),
    Case(Step.BETWEEN_WRITE_AND_FSYNC, fault_runs.block_job, fault_runs.nothing, 6, "a result"),
    Case(Step.BETWEEN_WRITE_AND_FSYNC, fault_runs.refresh, fault_runs.generated, 3, "a staged sample"),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, fault_runs.refresh, fault_runs.generated, 8, "a journal"),
    Case(Step.BEFORE_REPLACEMENT, fault_runs.refresh, fault_runs.generated, 2),
    Case(Step.WITHIN_REPLACEMENT, fault_runs.refresh, fault_runs.generated, 6, is_stopped=True),
    Case(Step.WITHIN_COMMIT, fault_runs.refresh, fault_runs.generated, 2),
    Case(Step.WITHIN_PACKING, fault_runs.pack, fault_runs.generated, 1),
    Case(Step.BEFORE_PACK, fault_runs.pack, fault_runs.generated),
    Case(Step.WITHIN_PACKING, fault_runs.pack_tars, fault_runs.generated, 2),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, fault_runs.pack_tars, fault_runs.generated, 4, "a tar file"),
    Case(Step.WITHIN_NORMALIZATION, fault_runs.normalize, fault_runs.generated, 2),
    Case(Step.BETWEEN_WRITE_AND_FSYNC, fault_runs.normalize, fault_runs.generated, 2, "statistics"),
    Case(Step.WITHIN_REPAIR, fault_runs.repair, fault_runs.scattered, 2),
    Case(Step.WITHIN_CONDITIONS, fault_runs.conditions, fault_runs.generated, 1),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, fault_runs.conditions, fault_runs.generated, 2, "conditions"),
    Case(Step.WITHIN_IMPORT, fault_runs.import_older, fault_runs.nothing, 2),
    Case(Step.WITHIN_CONTEXT_MAPS, fault_runs.context_maps, fault_runs.older_samples, 2),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, fault_runs.context_maps, fault_runs.older_samples, 3, "a sample"),
    Case(Step.WITHIN_READING, *T, 1, rank=1),
    Case(Step.BETWEEN_SAMPLES, *T, 1, rank=0),
    Case(Step.BETWEEN_SAMPLES, *T, 1, rank=1, is_stopped=True),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, *T, 1, rank=1),
    Case(Step.BETWEEN_RENAME_AND_COMMIT, *T, 2, rank=0),
    Case(Step.WITHIN_COMMIT, *T, 1, rank=0),
    Case(Step.AFTER_PLANNING, *F, 1),
    Case(Step.BETWEEN_RENAME_AND_COMMIT, *F, 2),
    Case(Step.WITHIN_COMMIT, *F, 1),
    Case(Step.WITHIN_READING, *F, 1, rank=1, is_retried=True),
    Case(Step.BETWEEN_SAMPLES, *F, 1, rank=0, is_retried=True),
    Case(Step.BETWEEN_SAMPLES, *F, 1, rank=1, is_retried=True),
    Case(Step.WITHIN_RESULT, *F, 1, rank=0, is_retried=True),
]


@pytest.mark.parametrize(
    ("case", "action"),
    [(case, action) for case in CASES for action in case.actions],
    ids=str,
)
def test_a_rerun_is_as_if_nothing_had_happened(
    case: Case, action: Action, arena: Arena, undisturbed: Undisturbed, small_disk: tuple[Path, bool]
) -> None:
    """The disturbed run ends as it should, the next one completes it to the byte, and nothing half written is left."""
    if action is Action.FULL_DISK and not small_disk[1]:
        pytest.skip("this machine does not let us mount a small disk")
    expected = undisturbed.result(case)
    undisturbed.begin(case.begin)
    before = content(arena)
    ended = finish(case.run, arena, case.fault(action, arena))
    (arena.folder / "ballast").unlink(missing_ok=True)
    found = content(arena)
    check_end(ended, case, action, found.equals(expected))
    assert case.rank is None or arena.folder.with_name("counter").stat().st_size >= case.passing
    rerun = finish(case.run, arena)
    assert rerun.status == 0, rerun.said
    after = content(arena)
    assert after.equals(expected), after.difference(expected)
    assert not leftovers(arena)
    # What still fits onto a full disk is for the kernel to say, which counts roughly.
    by_chance = action is Action.FULL_DISK or case.run in WRITING_AT_ONCE or ended.status == 0
    there = "" if by_chance else what_is_there(found, before, expected)
    check_cell(case.row, 3 + ACTIONS.index(action), f"{how(ended, action, case.is_retried)}{there}")


S = (fault_runs.first_share, fault_runs.second_share, fault_runs.generate, fault_runs.nothing)
A = (fault_runs.first_share_anew, fault_runs.second_share_anew, fault_runs.refresh, fault_runs.generated)
Pair = tuple[Step, int, Callable[[Arena], int], Callable[[Arena], int], Callable[[Arena], int], Callable[[Arena], None]]
PAIRS: list[Pair] = [
    (Step.AFTER_PLANNING, 1, *S),
    (Step.BETWEEN_FSYNC_AND_RENAME, 7, *S),
    (Step.BETWEEN_RENAME_AND_COMMIT, 1, *S),
    (Step.WITHIN_COMMIT, 1, *S),
    (Step.BEFORE_REPLACEMENT, 1, *A),
    (Step.WITHIN_REPLACEMENT, 2, *A),
    (Step.WITHIN_COMMIT, 1, *A),
]


def pair_row(pair: Pair) -> str:
    return f"| `{pair[0]}:{pair[1]}` | {pair[2].__name__.replace('_', ' ')} | {pair[3].__name__.replace('_', ' ')} |"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[2].__name__}")
def test_a_share_that_is_late_and_one_that_is_not_are_one_run(
    pair: Pair, arena: Arena, undisturbed: Undisturbed
) -> None:
    """While one run takes its time at a step, another one makes the rest: both succeed, and nothing is lost."""
    step, passing, late, other, alone, begin = pair
    if step is not Step.WITHIN_COMMIT and not os.environ.get(ALL):
        pytest.skip(f"only with {ALL}=1")
    expected = undisturbed.result(Case(step, alone, begin))
    undisturbed.begin(begin)
    counter = arena.folder.with_name("counter")
    counter.unlink(missing_ok=True)
    delayed = Running(late, arena, f"{step}:{Action.DELAY}:{passing}:seconds=3:counter={counter}")
    wait_for(lambda: counter.exists() and counter.stat().st_size >= passing, f"the step {step}", PATIENCE)
    meanwhile = finish(other, arena)
    ended = delayed.ended()
    assert (ended.status, meanwhile.status) == (0, 0), ended.said + meanwhile.said
    found = content(arena)
    assert found.equals(expected), found.difference(expected)
    assert not leftovers(arena)
    check_cell(pair_row(pair), 4, "status 0 and status 0")


def test_a_snapshot_that_is_cut_off_while_it_is_read_spoils_nothing(arena: Arena, undisturbed: Undisturbed) -> None:
    """Of it, no sample is made; its simulation says why, the other one is made, and a rerun makes up for it."""
    case = Case(Step.WITHIN_READING, fault_runs.generate, fault_runs.nothing)
    expected = undisturbed.result(case)
    undisturbed.begin(case.begin)
    snapshot = next((arena.suite.hydro_base / "SB35_0").rglob("*.hdf5"))
    whole, facts = snapshot.read_bytes(), snapshot.stat()
    running = Running(case.run, arena, f"{case.step}:{Action.SIGSTOP}:1")
    stopped = running.wait_until_stopped()
    os.truncate(snapshot, len(whole) // 2)
    os.kill(stopped, signal.SIGCONT)
    ended = running.ended()
    snapshot.write_bytes(whole)
    os.utime(snapshot, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert ended.status == 1
    found = content(arena)
    assert snapshot.name in ended.said, ended.said
    assert set(found.samples["simulation"]) == {"SB35_1"}, ended.said
    assert finish(case.run, arena).status == 0
    after = content(arena)
    assert after.equals(expected), after.difference(expected)


def test_the_table_is_of_all_steps() -> None:
    """Every step has a row, no row is of something else, and each step is explained by its own sentence."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [case for case in CASES if not any(line.startswith(case.row) for line in lines)] == []
    assert sum(line.startswith("| `") and line.count("|") == 8 for line in lines) == len(CASES)
    assert {case.step for case in CASES} == set(Step)
    assert [pair for pair in PAIRS if not any(line.startswith(pair_row(pair)) for line in lines)] == []
    for step in Step:
        assert f"| `{step}` | {step.description} |" in lines


WRITING = "import sys; from pathlib import Path; from storage.files import write_bytes\n"
WRITING += "for name in sys.argv[2:]: write_bytes(Path(sys.argv[1], name), b'content')"


def write(folder: Path, *names: str, fault: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {VARIABLE: fault}
    line = [sys.executable, "-c", WRITING, str(folder), *names]
    return subprocess.run(line, env=variables, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)


def test_the_environment_alone_asks_for_a_fault(tmp_path: Path) -> None:
    """A fault happens at the passing that the variable names, of one process or of all that share a counter."""
    killed = write(tmp_path / "one", "a", "b", "c", fault="between-fsync-and-rename:sigkill:2")
    assert killed.returncode == -9
    assert [path.name for path in (tmp_path / "one").glob("[a-z]*")] == ["a"]
    shared = f"between-write-and-fsync:enospc:3:counter={tmp_path / 'counter'}"
    assert write(tmp_path / "two", "a", "b", fault=shared).returncode == 0
    full = write(tmp_path / "two", "c", "d", fault=shared)
    assert full.returncode == 1
    assert f"Cannot write {tmp_path / 'two' / 'c'}" in full.stderr
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    "text", ["", "nowhere:raise", "between-samples", "between-samples:raise:x", "after-planning:a:1:b=2"]
)
def test_a_fault_that_there_is_not_is_refused(text: str) -> None:
    """What the variable should be is said, and no run begins without the fault that was asked for."""
    with pytest.raises(ValueError, match=f"^{VARIABLE}={text}: .* Expected STEP:ACTION"):
        Fault.from_text(text)


def test_a_commit_is_flushed_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a commit consists of, and the folders that name it, are on disk when `append_rows` returns."""
    flushed: set[str] = set()
    monkeypatch.setattr(os, "fsync", lambda number: flushed.add(Path(f"/proc/self/fd/{number}").readlink().name))
    append_rows(tmp_path / "table", pl.DataFrame({"simulation": ["SB35_0"]}), {})
    (data,) = (tmp_path / "table").glob("*.parquet")
    assert flushed >= {data.name, f"{0:020}.json", "_delta_log", "table"}
