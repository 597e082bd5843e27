"""What a process does to a data set, and processes that do it until a fault ends them."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from block_runs import ProjectedBlock, layout_of
from mpi4py import MPI
from rich.console import Console

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError
from bind_core.parameters import find_parameter_file, read_parameter_table
from storage import compaction, faults
from storage.audit import audit
from storage.audit_depth import Depth
from storage.blocks import block_outcomes, plan_block, screen_block
from storage.compaction import LEFTOVER_AGE
from storage.lease import writing
from storage.manifest import Manifest, open_dataset, recorded_configuration
from storage.preparation import prepare_root
from storage.recording import commit_outcomes, new_run_id
from storage.repair import plan_repair, tidy
from storage.replacement import staging_kept
from storage.versions import tag_version
from storage.workload import plan_workload
from tasks.batch import BatchRun
from tasks.projection_job import project_block

PATIENCE = 300
"""Seconds after which a process counts as hanging."""
SMALL_FILES = 3
"""Files of a table from which on they are merged: so few that it happens all the time."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108

_FORKED = multiprocessing.get_context("forkserver")


# What a process does


def run(config: DatasetConfig, names: Sequence[str], refresh: bool) -> bool:
    """Do what the batch program does; return whether all is well."""
    console = Console(file=StringIO())
    return BatchRun(MPI.COMM_SELF, config, list(names), False, refresh, None, console).execute(dry_run=False)


def write(
    config: DatasetConfig, names: Sequence[str], run_id: str, refresh: bool, remake: Sequence[str] = ()
) -> ProjectedBlock | None:
    """Make the samples of a block and record nothing; return None where there is nothing to do."""
    layout = layout_of(config)
    manifest = open_dataset(layout, config, refresh=refresh)
    manifest.finish_interrupted()
    workload = plan_workload(config, manifest, names, refresh=refresh, remake=remake)
    if not workload.outstanding:
        return None
    prepare_root(layout)
    screened = screen_block(workload.outstanding, config, read_parameter_table(find_parameter_file(config)))
    plan = plan_block(screened, config, run_id, 0)
    made = [] if plan is None else project_block(MPI.COMM_SELF, plan, lambda progress: None)
    return ProjectedBlock(screened, plan, {result.simulation: result for result in made})


def commit(config: DatasetConfig, block: ProjectedBlock, run_id: str, repair: bool = False) -> None:
    """Record a block that `write` has made."""
    outcomes = block_outcomes(layout_of(config), block.screened, block.plan, block.results)
    commit_outcomes(open_dataset(layout_of(config), config, refresh=True), config, outcomes, run_id, repair=repair)


def repair(root: Path) -> list[str]:
    """Do what the command of this name does; return what another audit finds."""
    config = recorded_configuration(root)
    assert config is not None
    layout, run_id = layout_of(config), new_run_id()
    prepare_root(layout)
    with writing(layout, "repair", run_id) as lease:
        manifest = open_dataset(layout, config, lease)
        plan = plan_repair(layout, manifest, _audited(config))
        tidy(layout, manifest, plan, run_id)
    if plan.simulations:
        with writing(layout, "repair", run_id, plan.simulations), staging_kept(layout, run_id):
            block = write(config, plan.simulations, run_id, True, plan.remake)
            if block is not None:
                commit(config, block, run_id, repair=True)
    return [finding.message for finding in _audited(config) if finding.severity == "error"]


def remove_duplicates(config: DatasetConfig) -> int:
    return Manifest(layout_of(config), config).remove_duplicates(new_run_id())


def compact(table: Path) -> list[Path]:
    """Merge a table's files and remove, as it is done a day later, what is of no version; return what was removed."""
    compaction.compact(table, {"run_id": "compaction"})
    faults.passing(faults.Step.WITHIN_COMPACTION)
    return compaction.remove_leftovers(table, datetime.now(UTC) + 2 * LEFTOVER_AGE)


def tag(config: DatasetConfig, name: str) -> int:
    return tag_version(layout_of(config), name).version


def _audited(config: DatasetConfig) -> Sequence[Any]:
    return audit(layout_of(config), Depth.VERIFIED, audited_at=datetime.now(UTC), threads=1).findings


# Processes


@dataclass(frozen=True)
class Ended:
    """How an operation ended."""

    how: str
    """`done`, `refused` with an error of ours, `raised` with another one, or `killed`."""
    answer: Any = None
    """What the operation returned, or what was raised, as text."""
    disturbed: bool = False
    """Whether the fault happened."""

    @property
    def done(self) -> bool:
        return self.how == "done" and not self.disturbed


class Writer:
    """A process that does one operation after another."""

    def __init__(self) -> None:
        self._begin()

    def do(self, operation: Callable[..., Any], *arguments: object, fault: str = "") -> Ended:
        """Have an operation done, with a fault or without; the process that was disturbed does no other."""
        self._line.send((operation, arguments, fault))
        try:
            if not self._line.poll(PATIENCE):
                self.stop()
                self._begin()
                raise AssertionError(f"{operation.__name__} hangs")
            ended: Ended = self._line.recv()
        except EOFError:
            ended = Ended("killed", disturbed=True)
        if ended.disturbed:
            self._end()
            assert self._process.exitcode == (-9 if ended.how == "killed" else 0)
            self._begin()
        return ended

    def stop(self) -> None:
        self._process.kill()
        self._end()

    def _begin(self) -> None:
        self._line, other = _FORKED.Pipe()
        self._process = _FORKED.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()

    def _end(self) -> None:
        self._process.join(PATIENCE)
        self._line.close()
        # MPI removes its shared memory when a process ends, but not when it is killed.
        (SHARED_MEMORY / f"mpich_shm_{self._process.pid:x}_0").unlink(missing_ok=True)


def preload_writers() -> None:
    """Say what processes are forked from: one that has imported everything."""
    _FORKED.set_forkserver_preload(["fault_preload"])


def _serve(line: Connection) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if not MPI.Is_initialized():
        MPI.Init_thread()
    compaction._MOST_SMALL_FILES = SMALL_FILES
    disturbed = False
    while not disturbed:
        try:
            operation, arguments, text = line.recv()
        except EOFError:
            return
        fault = faults.Fault.from_text(text) if text else None
        faults._asked = fault
        try:
            how, answer = "done", operation(*arguments)
        except BindDataError as error:
            how, answer = "refused", f"{type(error).__name__}: {error}"
        except Exception:
            how, answer = "raised", traceback.format_exc()
        faults._asked = None
        disturbed = fault is not None and next(fault._passings) > fault.passing
        line.send(Ended(how, answer, disturbed))
