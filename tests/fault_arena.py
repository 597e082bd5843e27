"""Where runs are disturbed: a small disk, what each run starts from and leads to, and the table of what was found."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fault_runs
import pytest
from batch_runs import REPOSITORY
from fault_runs import Arena, Content, content, finish, leftovers
from older_generator import write_older_dataset

from storage.faults import Action, Step
from storage.mock_suite import write_mock_suite

PAGE = REPOSITORY / "docs" / "reliability.md"
WRITE = "BIND_DATA_WRITE_TABLE"
ALL = "BIND_DATA_ALL_FAULTS"
ACTIONS = (Action.SIGKILL, Action.RAISE, Action.ENOSPC, Action.FULL_DISK, Action.SIGSTOP)
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
    rank: int | None = None
    """The rank that it happens to, where there are several."""
    is_stopped: bool = False
    """Whether it is continued by default after it stood still here."""
    is_retried: bool = False
    """Whether the run makes up for a failure by itself."""

    @property
    def row(self) -> str:
        """The row's first cells in the table."""
        what = self.what if self.rank is None else f"rank {self.rank}"
        where = f"{self.run.__name__.replace('_', ' ')}{f', {what}' if what else ''}"
        return f"| `{self.step}:{self.passing}` | {where} |"

    def fault(self, action: Action, arena: Arena) -> str:
        """Return the fault that is asked for; with a new count of passings where several processes have one."""
        asked = f"{self.step}:{action}:{self.passing}:folder={arena.folder}"
        if self.rank is None:
            return asked
        counter = arena.folder.with_name("counter")
        counter.unlink(missing_ok=True)
        return f"{asked}:rank={self.rank}:counter={counter}"

    @property
    def is_write(self) -> bool:
        """Whether the step is one of writing a file, where alone a disk can turn out to be full."""
        return self.step in (Step.BETWEEN_WRITE_AND_FSYNC, Step.BETWEEN_FSYNC_AND_RENAME)

    @property
    def actions(self) -> tuple[Action, ...]:
        """What happens at the step, by default or if everything is asked for."""
        stopped = (Action.SIGSTOP,) if self.is_stopped else ()
        if self.run in fault_runs.PROGRAMS:  # each of their runs takes many seconds
            raised = (Action.RAISE,) if self.run is fault_runs.two_ranks else ()
            return (Action.SIGKILL, *raised, *stopped) if os.environ.get(ALL) else ()
        if os.environ.get(ALL):
            return tuple(action for action in ACTIONS if self.is_write or action is not Action.ENOSPC)
        if self.is_write:
            return (Action.SIGKILL, *stopped)
        return (Action.SIGKILL, Action.FULL_DISK, *stopped)

    def __str__(self) -> str:
        rank = "" if self.rank is None else f"-rank{self.rank}"
        return f"{self.step}:{self.passing}-{self.run.__name__}{rank}"


WRITING_AT_ONCE = (fault_runs.context_maps, fault_runs.two_ranks)
"""Runs that write in threads or on several ranks, so that how far one is at a step is a matter of chance."""


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
        "test_fraction: 0\nread_ahead_memory: 1000000\nranks: 2\nretry_delay: 0.1\n"
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


def check_end(ended: fault_runs.Ended, case: Case, action: Action, is_whole: bool) -> None:
    """Assert that a run ended by the fault, or that it made light of it with good reason."""
    if action is Action.SIGSTOP or (case.is_retried and action is not Action.FULL_DISK):
        assert (ended.status, is_whole) == (0, True), ended.said
    elif action is Action.SIGKILL:
        assert ended.status in KILLED, ended.said
    elif ended.status == 0:
        assert is_whole
    else:
        assert ended.status == 1, ended.said
        if action is Action.RAISE:
            assert "InjectedError: at the step" in ended.said
        else:
            reasons = ("No space left on device", "are free on that file system", "has no room for what this run")
            assert any(reason in ended.said for reason in reasons), ended.said
            assert "Traceback" not in ended.said, ended.said


KILLED = (-9, 9, 137)
"""Statuses of a process that was killed, of mpiexec where a rank was, and of a shell where its command was."""


def how(ended: fault_runs.Ended, action: Action, is_retried: bool) -> str:
    if ended.status in KILLED:
        return "killed"
    before = "continued: " if action is Action.SIGSTOP else "retried: " if is_retried else ""
    return f"{before}status {ended.status}"


def what_is_there(found: Content, before: Content, expected: Content) -> str:
    """Return how far a disturbed run came."""
    files = expected.files.items() - before.files.items()
    rows = set(expected.samples["sha256"]) - set(before.samples["sha256"])
    parts = [f"{len(files & found.files.items())} of {len(files)} files"] if files else []
    parts += [f"{len(rows & set(found.samples['sha256']))} of {len(rows)} rows"] if rows else []
    return f": {', '.join(parts)}"


def check_cell(row_begins: str, column: int, cell: str) -> None:
    """Hold a cell of a table against what was found, or write it."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (row,) = [number for number, line in enumerate(lines) if line.startswith(row_begins)]
    cells = lines[row].split("|")
    if os.environ.get(WRITE):
        cells[column] = f" {cell} "
        lines[row] = "|".join(cells)
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        assert cells[column].strip() == cell
