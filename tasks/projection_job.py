"""The MPI program: makes the samples of a block of simulations.

``python -m mpi4py -m tasks.projection_job PLAN.json --ranks N`` is what launchers start; the batch entry point calls
`project_block` on its own communicator. It knows no Prefect, and it writes samples and results only: whether a
sample exists is for the manifest to say, which the caller keeps.

The ranks of a node share one copy of the particles of one component at a time. They fill it together, each from its
own part of the files, and then deal the samples out among themselves. The maps wait in shared memory until all
components are done; then the samples are written. The result does not depend on the number of ranks.
"""

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import cast

import numba
import numpy as np
from mpi4py import MPI

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError, SnapshotError
from bind_core.findings import Severity
from bind_core.input_checks import unreadable
from bind_core.maps import input_maps, target_map
from bind_core.mesh import ParticleMesh
from bind_core.plan import BlockPlan, SimulationPlan
from bind_core.wrapping import into_box
from storage.faults import Step, passing
from storage.files import StorageFullError, write_bytes
from storage.layout import DatasetLayout
from storage.replacement import staging_kept
from storage.results import SimulationResult
from tasks.block_files import result_file
from tasks.launchers import MISMATCH_STATUS
from tasks.node_memory import InsufficientMemoryError, NodeMemory, node_memory
from tasks.progress import Progress, ProgressSink
from tasks.rank_messages import RankMessages
from tasks.read_ahead import ReadAhead, reads_ahead
from tasks.shared_memory import together
from tasks.simulation_job import Share, SimulationJob, UnusableInputError


class JobMismatchError(BindDataError):
    """A launcher that does not belong to the MPI library in use."""


def project_block(
    comm: MPI.Intracomm,
    plan: BlockPlan,
    progress: ProgressSink,
    *,
    on_result: Callable[[SimulationResult], None] = lambda result: None,
    on_simulation: Callable[[str], None] = lambda name: None,
    ranks_per_node: int | None = None,
) -> list[SimulationResult]:
    """Make all samples of a block; collective.

    Parameters
    ----------
    comm : MPI.Comm
        All ranks of the job. Simulations are dealt out to nodes, samples to the ranks of a node.
    plan : BlockPlan
        What to do; the same on every rank.
    progress : callable
        Called on any rank, some times a second.
    on_result : callable
        Called with each simulation's result as soon as it is there, on one rank; not with errors that may pass.
    on_simulation : callable
        Called on every rank with the name of each simulation that it begins.
    ranks_per_node : int, optional
        Treats each so many ranks as a node of their own. By default, ranks that can share memory are a node.

    Returns
    -------
    list of SimulationResult
        On rank 0, in the plan's order; empty on the others. A simulation with bad content has findings and no
        samples; one that could not be made for another reason has an error, and making it again may help.

    Raises
    ------
    BindDataError
        If `on_result` does, or if the backend cannot be used at all.
    """
    node = _node_of(comm, ranks_per_node)
    leaders = comm.Split(0 if node.rank == 0 else MPI.UNDEFINED, comm.rank)
    node_number, nodes = node.bcast((leaders.rank, leaders.size) if node.rank == 0 else None)
    mine: list[SimulationResult] = []
    error: BindDataError | None = None
    try:
        _compile_once(node, plan.config)
        full = ""
        ahead: ReadAhead[Share] = ReadAhead(node.bcast(reads_ahead(plan.config)))
        with ahead:
            memory = node_memory() if node.rank == 0 else None
            jobs = _jobs(node, plan, plan.simulations[node_number::nodes], progress, ahead, memory)
            for job in jobs:
                name = job.simulation.simulation
                on_simulation(name)
                if full:
                    mine.append(SimulationResult(name, error=full))
                    continue
                try:
                    result = _result_of(job)
                except StorageFullError as caught:
                    full = str(caught)  # the others would be read for nothing
                    result = SimulationResult(name, error=full)
                mine.append(result)
                if not result.error or result.lasting:
                    together(node, partial(on_result, result) if node.rank == 0 else lambda: None)
    except BindDataError as caught:  # on all ranks of this node, but not on other nodes
        error = caught
    failures = [failure for failure in comm.allgather(error) if failure is not None]
    gathered = leaders.gather(mine) if node.rank == 0 else None
    if leaders != MPI.COMM_NULL:
        leaders.Free()
    node.Free()
    if failures:
        raise failures[0]
    by_name = {result.simulation: result for results in gathered or [] for result in results}
    return [by_name[simulation.simulation] for simulation in plan.simulations] if comm.rank == 0 else []


def follow(comm: MPI.Intracomm) -> None:
    """Work on the blocks that the first rank hands out with `bcast`, until it hands out None."""
    load_compiler()  # while the first rank is planning
    while (plan := comm.bcast(None)) is not None:
        try:
            project_block(comm, plan, lambda progress: None)
        except BindDataError:
            continue  # raised on all ranks together; the first one says it and ends the run


def check_world_size(comm: MPI.Intracomm, asked: int) -> None:
    """Make sure that the launcher started one job of the size asked for, and not several jobs of one rank.

    Raises
    ------
    JobMismatchError
        If it did not.
    """
    if comm.size != asked:
        raise JobMismatchError(
            f"Starting an MPI job of {asked} ranks: this process finds itself in one of {comm.size}. The launcher does "
            f"not belong to the MPI library that mpi4py uses ({MPI.Get_library_version().split(chr(10))[0].strip()}). "
            "Call the launcher of that library; with srun, give the flag that `python -m tasks.slurm` prints."
        )


def _node_of(comm: MPI.Intracomm, ranks_per_node: int | None) -> MPI.Intracomm:
    if ranks_per_node is not None:
        return cast(MPI.Intracomm, comm.Split(comm.rank // ranks_per_node, comm.rank))
    return cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank))


def _compile_once(node: MPI.Intracomm, config: DatasetConfig) -> None:
    """Let one rank compile the kernels, so that the others find them in the cache."""

    def compile_them() -> None:
        for raw in (np.zeros((1, 3)), np.zeros((1, 3), dtype=np.float32)):
            into_box(raw, 1.0, config.depth, 0.0, np.zeros((1, 3), dtype=np.float32))
        positions = np.zeros((1, 3), dtype=np.float32)
        for masses in (1.0, np.ones(1, dtype=np.float32)):
            particles = ParticleMesh.build(positions, masses, config.depth)
            input_maps(particles, np.zeros(3), np.eye(3), config.windows, config.backend)
            target_map(particles, np.zeros(3), np.eye(3), config.windows, config.backend)

    together(node, compile_them if node.rank == 0 else load_compiler)


def load_compiler() -> None:
    """Load numba's compiler, which each process that uses a kernel has to do once, cached or not; it takes 0.4 s."""
    numba.njit(lambda number: number)(1)


def _jobs(
    node: MPI.Intracomm,
    plan: BlockPlan,
    simulations: Sequence[SimulationPlan],
    progress: ProgressSink,
    ahead: ReadAhead["Share"],
    memory: NodeMemory | None,
) -> list["SimulationJob"]:
    jobs = [SimulationJob(node, plan, simulation, progress, ahead, memory) for simulation in simulations]
    for job, successor in pairwise(jobs):
        job.successor = successor
    return jobs


def _result_of(job: "SimulationJob") -> SimulationResult:
    name = job.simulation.simulation
    try:
        return job.run()
    except UnusableInputError as error:
        return SimulationResult(name, findings=tuple(error.findings))
    except SnapshotError as error:  # it could be read when it was screened
        return SimulationResult(name, findings=(unreadable(name, error),))
    except StorageFullError:
        raise
    except InsufficientMemoryError as error:
        return SimulationResult(name, error=str(error), lasting=True)
    except BindDataError as error:
        return SimulationResult(name, error=str(error))


def print_progress(progress: Progress) -> None:
    """Write a progress report to standard output as one line of JSON, in one piece."""
    line = json.dumps(asdict(progress)) + "\n"
    sys.stdout.flush()
    os.write(sys.stdout.fileno(), line.encode())


def watch_standard_input() -> None:
    """Abort the whole job when standard input ends, as it does when whoever started the job is gone."""

    def wait_for_end() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        sys.stderr.write("The process that started this job has ended: aborting.\n")
        MPI.COMM_WORLD.Abort(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


def _staging(comm: MPI.Intracomm, plan: BlockPlan) -> AbstractContextManager[None]:
    """Keep what the job stages from other runs, which may be the only ones left if its own was killed."""
    if comm.rank or not any(simulation.replaced for simulation in plan.simulations):
        return nullcontext()
    return staging_kept(DatasetLayout(plan.config.output_root, plan.config.set_name), plan.run_id)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a block from a plan file, and leave a result file for each simulation beside it."""
    parser = argparse.ArgumentParser(description="Make the samples of a block of simulations (an MPI program).")
    parser.add_argument("plan", type=Path, help="the block's plan, JSON")
    parser.add_argument("--ranks", type=int, required=True, help="number of ranks that the launcher was asked for")
    parser.add_argument("--watch-stdin", action="store_true", help="abort when standard input ends")
    options = parser.parse_args(arguments)
    comm = MPI.COMM_WORLD
    messages = RankMessages(comm.rank)
    messages.collect()

    def save(result: SimulationResult) -> None:
        for finding in result.findings:
            level = logging.ERROR if finding.severity is Severity.ERROR else logging.WARNING
            messages.say(level, finding.message, finding.simulation)
        if result.error:
            messages.say(logging.ERROR, result.error, result.simulation)
        passing(Step.WITHIN_RESULT)
        write_bytes(result_file(options.plan.parent, result.simulation), result.to_json().encode())

    try:
        check_world_size(comm, options.ranks)
        if options.watch_stdin and comm.rank == 0:
            watch_standard_input()
        plan = BlockPlan.from_json(options.plan.read_bytes(), options.plan)
        with _staging(comm, plan):
            results = project_block(comm, plan, print_progress, on_result=save, on_simulation=messages.begin)
        errors = comm.bcast(
            [(result.error, result.simulation) for result in results if result.error and not result.lasting]
        )
    except JobMismatchError as error:
        if comm.rank == 0:
            messages.say(logging.ERROR, str(error))
        comm.Barrier()  # whoever ends first ends the others
        sys.exit(MISMATCH_STATUS)
    except BindDataError as error:  # on all ranks together
        errors = [(f"{type(error).__name__}: {error}", "")]
    except Exception as error:  # on this rank alone: mpi4py ends the others
        messages.say(logging.ERROR, f"{type(error).__name__}: {error}")
        raise
    if errors:
        if comm.rank == 0:
            for text, simulation in errors:
                messages.say(logging.ERROR, text, simulation)
        sys.exit(1)


if __name__ == "__main__":
    main()
