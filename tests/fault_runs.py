"""Small runs of everything that writes, each in a process of its own that a fault can hit."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
from batch_runs import REPOSITORY, bases, command, sample_rows, simulation_rows, temporaries, wait_for
from flow_runs import Family, parent_of

from bind_core.config import DatasetConfig
from storage import compaction, faults, shards
from storage.archives import decode_arrays, encode_arrays
from storage.files import remove_stale_temporaries, sha256_of, write_bytes
from storage.layout import DatasetLayout
from storage.manifest import layout_at, open_dataset
from storage.mock_suite import MockSuite

PATIENCE = 120
"""Seconds after which a process counts as hanging."""
_FORKED = multiprocessing.get_context("forkserver")
_SMALL_PACKS = 4


@dataclass(frozen=True)
class Arena:
    """Where runs write. Each is made in the same place, since a data set holds its own path."""

    folder: Path
    suite: MockSuite
    configuration: Path
    older: Path
    """An older data set, which is only read."""

    @property
    def root(self) -> Path:
        return self.folder / "set"

    def generate(self, *arguments: str) -> int:
        from process_simulations import main

        places = [*bases(self.suite), "--output_base_root", str(self.root), "--config", str(self.configuration)]
        return main([*places, *arguments])

    def command(self, *arguments: object) -> int:
        """Run `bind-data`; it ends the process."""
        from flows.cli import app

        app([str(argument) for argument in arguments])
        return 0


def generate(arena: Arena) -> int:
    return arena.generate()


def first_share(arena: Arena) -> int:
    return arena.generate("--share", "0/2")


def second_share(arena: Arena) -> int:
    return arena.generate("--share", "1/2")


def first_share_anew(arena: Arena) -> int:
    return arena.generate("--refresh", "--seed", "7", "--share", "0/2")


def second_share_anew(arena: Arena) -> int:
    return arena.generate("--refresh", "--seed", "7", "--share", "1/2")


def two_ranks(arena: Arena) -> int:
    """Do what `generate` does, as an MPI job."""
    places = [*bases(arena.suite), "--output_base_root", arena.root, "--config", arena.configuration]
    return _program(arena, command(*places, ranks=2))


def flow(arena: Arena) -> int:
    """Do what `generate` does, as a Prefect flow with an MPI job for each block."""
    program = Path(sys.executable).with_name("bind-data")
    return _program(
        arena, [str(program), "generate", "--config", str(arena.configuration), "--dataset", str(arena.root)]
    )


def _program(arena: Arena, line: list[str]) -> int:
    """Run a program to its end and to that of all whom it has started; return its status as a shell would."""
    family = Family()
    asked = {faults.VARIABLE: os.environ[faults.VARIABLE]} if faults.VARIABLE in os.environ else {}
    variables = family.environment(PREFECT_HOME=arena.folder.with_name("prefect")) | asked
    status = subprocess.run(line, cwd=REPOSITORY, env=variables, stdin=subprocess.DEVNULL).returncode
    wait_for(lambda: not family.members(), "the end of all processes of a run")
    return 128 - status if status < 0 else status


def refresh(arena: Arena) -> int:
    """Make all samples anew, since another seed is asked for."""
    return arena.generate("--refresh", "--seed", "7")


def commit_often(arena: Arena) -> int:
    """Merge the tables' files after every commit."""
    compaction._MOST_SMALL_FILES = 0
    return arena.generate()


def pack(arena: Arena) -> int:
    shards.SAMPLES_PER_FILE = _SMALL_PACKS
    return arena.command("pack", "--dataset", arena.root, "--threads", 1)


def pack_tars(arena: Arena) -> int:
    shards.SAMPLES_PER_FILE = _SMALL_PACKS
    return arena.command("pack", "--dataset", arena.root, "--tar", "--threads", 1)


def normalize(arena: Arena) -> int:
    """Do what the flow does."""
    from bind_core.errors import BindDataError
    from storage.statistics import compute_statistics, write_statistics

    layout = layout_at(arena.root)
    try:
        write_statistics(compute_statistics(layout), layout.statistics_folder)
    except BindDataError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    return 0


def repair(arena: Arena) -> int:
    return arena.command("repair", "--dataset", arena.root)


def tag(arena: Arena) -> int:
    return arena.command("tag", "trained", "--note", "for the paper", "--dataset", arena.root)


def card(arena: Arena) -> int:
    return arena.command("card", "--dataset", arena.root)


def audit(arena: Arena) -> int:
    return arena.command("audit", "--dataset", arena.root)


def show(arena: Arena) -> int:
    picture = arena.folder / "sample.png"
    return arena.command("show", "SB35_0_halo_0_rot_0", "--dataset", arena.root, "--output", picture)


def query(arena: Arena) -> int:
    answer = arena.folder / "answer.csv"
    return arena.command("query", "SELECT * FROM samples", "--dataset", arena.root, "--output", answer)


def conditions(arena: Arena) -> int:
    return arena.command("conditions", "SB35_0", "--dataset", arena.root, "--output", arena.folder / "conditions")


def import_older(arena: Arena) -> int:
    places = [
        *("--dmo-base", arena.suite.dmo_base, "--hydro-base", arena.suite.hydro_base),
        *("--catalogue-base", arena.suite.catalogue_base, "--config", arena.configuration),
    ]
    return arena.command("import", arena.older, "--dataset", arena.root, "--check", 1, "--total-sims", 2, *places)


def context_maps(arena: Arena) -> int:
    from add_large_scale import main

    places = ["--nbody_base", str(arena.suite.dmo_base), "--fof_nbody_base", str(arena.suite.catalogue_base)]
    return main(["--samples", str(arena.root), *places, "--rotation", "euler"])


def block_job(arena: Arena) -> int:
    """Make everything with the MPI program of a block, keep its results until they are recorded, and take them up."""
    from bind_core.parameters import find_parameter_file, read_parameter_table
    from storage.blocks import block_outcomes, plan_block, screen_block
    from storage.recording import commit_outcomes, new_run_id
    from storage.workload import plan_workload
    from tasks.block_files import results_in
    from tasks.projection_job import main

    config = DatasetConfig.from_yaml(arena.configuration)
    layout = DatasetLayout(arena.root, config.set_name)
    manifest = open_dataset(layout, config)
    outstanding = plan_workload(config, manifest, None).outstanding
    if not outstanding:
        return 0
    screened = screen_block(outstanding, config, read_parameter_table(find_parameter_file(config)))
    run_id = new_run_id()
    plan = plan_block(screened, config, run_id, 0)
    assert plan is not None
    folder = layout.work_folder / "block"
    remove_stale_temporaries(folder)
    left = results_in(folder, plan)
    rest = replace(plan, simulations=tuple(each for each in plan.simulations if each.simulation not in left))
    write_bytes(folder / "plan.json", rest.to_json().encode())
    main([str(folder / "plan.json"), "--ranks", "1"])
    commit_outcomes(manifest, config, block_outcomes(layout, screened, plan, results_in(folder, plan)), run_id)
    shutil.rmtree(folder)
    return 0


PROGRAMS = (two_ranks, flow)
"""Runs that are programs of their own, with more processes below them."""


def nothing(arena: Arena) -> None:
    """Begin without a data set."""


def generated(arena: Arena) -> None:
    """Begin with a data set."""
    assert finish(generate, arena).status == 0


def scattered(arena: Arena) -> None:
    """Begin with a data set of whose samples some lie elsewhere."""
    generated(arena)
    for number, path in enumerate(sorted(arena.root.rglob("sim_0_*.npz"))):
        elsewhere = arena.root / "train" / f"elsewhere_{number}" / path.name
        elsewhere.parent.mkdir()
        path.rename(elsewhere)


def older_samples(arena: Arena) -> None:
    """Begin with samples of the older generator that lack a context map, and no manifest."""
    shutil.copytree(arena.older, arena.root)
    for path in arena.root.rglob("*.npz"):
        arrays = decode_arrays(path.read_bytes(), path)
        del arrays["large_scale"]
        path.write_bytes(encode_arrays(arrays))


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    """Negative for a signal."""
    said: str


class Running:
    """A run in a process of its own, with a fault or without."""

    def __init__(self, run: Callable[[Arena], int], arena: Arena, fault: str = "") -> None:
        self.said = arena.folder.with_name(f"said_by_{run.__name__}.txt")
        self.name = run.__name__
        self.process = _FORKED.Process(target=_run, args=(run, arena, fault, self.said))
        self.process.start()

    def ended(self) -> Ended:
        """Wait for its end."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"{self.name} hangs: {self.said.read_text()}")
        return Ended(self.process.exitcode, self.said.read_text())

    def stopped(self) -> list[int]:
        """Return those of its processes that stand still."""
        return [pid for pid, state in _states().items() if state == "T" and self._is_below(pid)]

    def wait_until_stopped(self) -> int:
        """Wait until one of its processes stands still; return which."""
        wait_for(lambda: self.stopped() or not self.process.is_alive(), "a process that stands still", PATIENCE)
        assert self.process.is_alive(), self.said.read_text()
        (pid,) = self.stopped()
        return pid

    def _is_below(self, pid: int) -> bool:
        while pid > 1:
            if pid == self.process.pid:
                return True
            try:
                pid = parent_of(pid)
            except OSError:
                return False
        return False


def finish(run: Callable[[Arena], int], arena: Arena, fault: str = "") -> Ended:
    """Do a run, with a fault or without, and wait for its end; one that stands still is continued."""
    running = Running(run, arena, fault)
    if f":{faults.Action.SIGSTOP}:" in fault:
        os.kill(running.wait_until_stopped(), signal.SIGCONT)
    return running.ended()


def _states() -> dict[int, str]:
    """Return the state of each process, as the kernel calls it."""
    states = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            states[int(process.name)] = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
    return states


def _run(run: Callable[[Arena], int], arena: Arena, fault: str, said: Path) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    if fault and run in PROGRAMS:
        os.environ[faults.VARIABLE] = fault
    elif run not in PROGRAMS:
        _be_a_rank()
        faults._asked = faults.Fault.from_text(fault) if fault else None
    sys.exit(run(arena))


def _be_a_rank() -> None:
    from mpi4py import MPI

    if not MPI.Is_initialized():
        MPI.Init_thread()


@dataclass
class Content:
    """All that an arena holds, but for times and the names of runs."""

    files: dict[str, str]
    samples: pl.DataFrame
    simulations: pl.DataFrame

    def equals(self, other: "Content") -> bool:
        return (
            self.files == other.files
            and self.samples.equals(other.samples)
            and self.simulations.equals(other.simulations)
        )

    def difference(self, other: "Content") -> str:
        files = sorted(name for name, _ in self.files.items() ^ other.files.items())
        rows = [self.samples.equals(other.samples), self.simulations.equals(other.simulations)]
        return f"files: {files}; equal rows of samples and simulations: {rows}"


def content(arena: Arena) -> Content:
    """Return what an arena holds; what is at work in it or is the Delta library's own is looked at as tables."""
    own = {arena.root / "manifest", arena.root / ".work", arena.folder / "ballast"}
    files = {
        path.relative_to(arena.folder).as_posix(): sha256_of(path)
        for path in sorted(arena.folder.rglob("*"))
        if path.is_file() and not own & {path, *path.parents}
    }
    return Content(files, sample_rows(arena.root), simulation_rows(arena.root).drop("inputs", "n_planned"))


def leftovers(arena: Arena) -> list[Path]:
    """Return what is half written."""
    return [*temporaries(arena.folder), *arena.folder.rglob("*.partial"), *arena.root.glob(".staged/**/*.npz")]
