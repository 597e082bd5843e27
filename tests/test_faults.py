"""Every step at which a run can be disturbed, and every fault there: nothing is lost, and a rerun is as if nothing was.

`docs/reliability.md` holds what these tests have found, a row for each step. With ``BIND_DATA_WRITE_TABLE=1`` they
write it. What is quick to do is done always, the whole table with ``BIND_DATA_ALL_FAULTS=1``.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fault_runs
import polars as pl
import pytest
from batch_runs import REPOSITORY
from fault_runs import Arena, Content, content, finish, leftovers
from older_generator import write_older_dataset

from storage.faults import VARIABLE, Action, Fault, Step
from storage.mock_suite import write_mock_suite
from storage.tables import append_rows

pytestmark = pytest.mark.mpi

PAGE = REPOSITORY / "docs" / "reliability.md"
WRITE = "BIND_DATA_WRITE_TABLE"
ALL = "BIND_DATA_ALL_FAULTS"
ACTIONS = (Action.SIGKILL, Action.RAISE, Action.ENOSPC, Action.FULL_DISK)
DISK = "16m"


@dataclass(frozen=True)
class Case:
    """A step of a run, and what the run starts from."""

    step: Step
    run: Callable[[Arena], int]
    begin: Callable[[Arena], None]
    passing: int = 1
    what: str = ""
    """What is being written, where the step is that of every file."""

    @property
    def row(self) -> str:
        """The row's first cells in the table."""
        where = f"{self.run.__name__.replace('_', ' ')}{f', {self.what}' if self.what else ''}"
        return f"| `{self.step}:{self.passing}` | {where} |"

    @property
    def is_write(self) -> bool:
        """Whether the step is one of writing a file, where alone a disk can turn out to be full."""
        return self.step in (Step.BETWEEN_WRITE_AND_FSYNC, Step.BETWEEN_FSYNC_AND_RENAME)

    @property
    def actions(self) -> tuple[Action, ...]:
        """What happens at the step, by default or if everything is asked for."""
        if os.environ.get(ALL):
            return tuple(action for action in ACTIONS if self.is_write or action is not Action.ENOSPC)
        return (Action.SIGKILL,) if self.is_write else (Action.SIGKILL, Action.FULL_DISK)

    def __str__(self) -> str:
        return f"{self.step}:{self.passing}-{self.run.__name__}"


G = (fault_runs.generate, fault_runs.nothing)
CASES = [
    Case(Step.AFTER_PLANNING, *G),
    Case(Step.WITHIN_READING, *G, 6),
    Case(Step.BETWEEN_SAMPLES, *G, 2),
    Case(Step.BETWEEN_WRITE_AND_FSYNC, *G, 3, "a sample"),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, *G, 3, "a sample"),
    Case(Step.BETWEEN_WRITE_AND_FSYNC, *G, 6, "`dataset.yaml`"),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, *G, 6, "`dataset.yaml`"),
    Case(Step.BETWEEN_RENAME_AND_COMMIT, *G, 2),
    Case(Step.WITHIN_COMMIT, *G, 1),
    Case(Step.WITHIN_COMPACTION, fault_runs.commit_often, fault_runs.nothing, 2),
    Case(Step.WITHIN_RESULT, fault_runs.block_job, fault_runs.nothing, 2),
    Case(Step.BETWEEN_WRITE_AND_FSYNC, fault_runs.block_job, fault_runs.nothing, 6, "a result"),
    Case(Step.BETWEEN_WRITE_AND_FSYNC, fault_runs.refresh, fault_runs.generated, 2, "a staged sample"),
    Case(Step.BETWEEN_FSYNC_AND_RENAME, fault_runs.refresh, fault_runs.generated, 7, "a journal"),
    Case(Step.BEFORE_REPLACEMENT, fault_runs.refresh, fault_runs.generated, 2),
    Case(Step.WITHIN_REPLACEMENT, fault_runs.refresh, fault_runs.generated, 6),
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
    Case(Step.BETWEEN_FSYNC_AND_RENAME, fault_runs.context_maps, fault_runs.older_samples, 2, "a sample"),
]

WRITING_IN_THREADS = (fault_runs.context_maps,)
"""Runs that write in the background, so that how far one is at a step is a matter of chance."""


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bool]]:
    """Return a folder, and whether it is a file system of its own, which can be filled up."""
    folder = tmp_path_factory.mktemp("arena") / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None and subprocess.run(mount).returncode == 0
    yield folder, mounted
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def arena(small_disk: tuple[Path, bool], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Return a place to run in, with processes that are forked from one that has imported everything."""
    folder, _ = small_disk
    home = tmp_path_factory.mktemp("inputs")
    suite = write_mock_suite(home, simulations=2, particles_per_side=16, halos_per_simulation=2)
    write_older_dataset(
        home / "older", suite.dmo_base, suite.hydro_base, suite.catalogue_base, range(2), total_sims=2, npix=16
    )
    configuration = home / "small.yaml"
    configuration.write_text(
        f"dmo_base: {suite.dmo_base}\nhydro_base: {suite.hydro_base}\ncatalogue_base: {suite.catalogue_base}\n"
        f"output_root: {folder / 'set'}\nresolution: 16\nstrata: [{{rotations: 2}}]\nsimulations_per_block: 1\n"
        "test_fraction: 0\nread_ahead_memory: 1000000\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "tests"))))
        fault_runs._FORKED.set_forkserver_preload(["fault_preload"])
        yield Arena(folder, suite, configuration, home / "older")


class Undisturbed:
    """What runs start from and lead to, each made once."""

    def __init__(self, arena: Arena, folder: Path) -> None:
        self.arena = arena
        self.folder = folder
        self._results: dict[str, Content] = {}

    def begin(self, begin: Callable[[Arena], None]) -> None:
        """Make an arena what a run starts from."""
        kept = self.folder / begin.__name__
        self._clear()
        if not kept.exists():
            begin(self.arena)
            shutil.copytree(self.arena.folder, kept)
        else:
            shutil.copytree(kept, self.arena.folder, dirs_exist_ok=True)

    def result(self, case: Case) -> Content:
        """Return what a run leads to that nothing disturbs."""
        name = f"{case.begin.__name__} {case.run.__name__}"
        if name not in self._results:
            self.begin(case.begin)
            ended = finish(case.run, self.arena)
            assert ended.status == 0, ended.said
            assert not leftovers(self.arena)
            self._results[name] = content(self.arena)
        return self._results[name]

    def _clear(self) -> None:
        for path in self.arena.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


@pytest.fixture(scope="module")
def undisturbed(arena: Arena, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(arena, tmp_path_factory.mktemp("kept"))


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
    ended = finish(case.run, arena, f"{case.step}:{action}:{case.passing}:folder={arena.folder}")
    (arena.folder / "ballast").unlink(missing_ok=True)
    found = content(arena)
    check_end(ended, action, found.equals(expected))
    rerun = finish(case.run, arena)
    assert rerun.status == 0, rerun.said
    after = content(arena)
    assert after.equals(expected), after.difference(expected)
    assert not leftovers(arena)
    # What still fits onto a full disk is for the kernel to say, which counts roughly.
    by_chance = action is Action.FULL_DISK or case.run in WRITING_IN_THREADS
    there = "" if by_chance else what_is_there(found, before, expected)
    check_cell(case, action, f"{how(ended)}{there}")


def check_end(ended: fault_runs.Ended, action: Action, is_whole: bool) -> None:
    """Assert that a run ended by the fault, or that it made light of it with good reason."""
    if action is Action.SIGKILL:
        assert ended.status == -9, ended.said
    elif ended.status == 0:
        assert is_whole
    else:
        assert ended.status == 1, ended.said
        if action is Action.RAISE:
            assert "InjectedError: at the step" in ended.said
        else:
            assert "No space left on device" in ended.said or "are free on that file system" in ended.said, ended.said
            assert "Traceback" not in ended.said, ended.said


def how(ended: fault_runs.Ended) -> str:
    return {-9: "killed", 0: "status 0", 1: "status 1"}[ended.status]


def what_is_there(found: Content, before: Content, expected: Content) -> str:
    """Return how far a disturbed run came."""
    files = expected.files.items() - before.files.items()
    rows = set(expected.samples["sha256"]) - set(before.samples["sha256"])
    parts = [f"{len(files & found.files.items())} of {len(files)} files"] if files else []
    parts += [f"{len(rows & set(found.samples['sha256']))} of {len(rows)} rows"] if rows else []
    return f": {', '.join(parts)}"


def check_cell(case: Case, action: Action, cell: str) -> None:
    """Hold a cell of the table against what was found, or write it."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    column = 3 + ACTIONS.index(action)
    (row,) = [number for number, line in enumerate(lines) if line.startswith(case.row)]
    cells = lines[row].split("|")
    if os.environ.get(WRITE):
        cells[column] = f" {cell} "
        lines[row] = "|".join(cells)
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        assert cells[column].strip() == cell


def test_the_table_is_of_all_steps() -> None:
    """Every step has a row, no row is of something else, and each step is explained by its own sentence."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [case for case in CASES if not any(line.startswith(case.row) for line in lines)] == []
    assert sum(line.startswith("| `") and line.count("|") == 7 for line in lines) == len(CASES)
    assert {case.step for case in CASES} == set(Step)
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
