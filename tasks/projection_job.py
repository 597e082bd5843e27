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
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from bind_core.config import DatasetConfig
from bind_core.content import ContentCheck
from bind_core.digests import ParticleDigests
from bind_core.errors import BindDataError, SnapshotError
from bind_core.findings import Finding, blocks
from bind_core.inputs import snapshot_digests
from bind_core.maps import input_maps, target_map
from bind_core.mesh import ParticleMesh, cell_counts, cells_per_side_for, scatter
from bind_core.plan import BlockPlan, SimulationPlan, Target
from bind_core.sample import TARGET_CHANNELS, Sample
from bind_core.snapshot import (
    Component,
    ComponentSource,
    SnapshotHeader,
    component_source,
    read_header,
    read_slices,
    share_of,
)
from bind_core.suite import Role, SimulationFiles, find_simulation
from bind_core.validation import unreadable
from storage.files import StorageFullError, remove_stale_temporaries, write_bytes
from storage.layout import DatasetLayout
from storage.replacement import staged_path
from storage.results import SampleRecord, SimulationResult
from storage.samples import write_sample
from tasks.progress import Progress, ProgressSink
from tasks.read_ahead import ReadAhead, reads_ahead
from tasks.shared_memory import dealt_out, shared_array, together

MAPS_MEMORY = 2 << 30
"""Bytes of finished maps that may wait in memory; a simulation with more samples is done in several passes."""

Result = TypeVar("Result")

_PROGRESS_INTERVAL = 0.25
_TARGET_COMPONENTS = (Component.DARK_MATTER, Component.GAS, Component.STARS)


def project_block(
    comm: MPI.Intracomm,
    plan: BlockPlan,
    progress: ProgressSink,
    *,
    on_result: Callable[[SimulationResult], None] = lambda result: None,
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
        Called with each simulation's result as soon as it is there, on one rank; not with results that are errors.
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
        ahead: ReadAhead[_Share] = ReadAhead(node.bcast(reads_ahead(plan.config)))
        with ahead:
            jobs = _jobs(node, plan, plan.simulations[node_number::nodes], progress, ahead)
            for job in jobs:
                name = job.simulation.simulation
                if full:
                    mine.append(SimulationResult(name, error=full))
                    continue
                try:
                    result = _result_of(job)
                except StorageFullError as caught:
                    full = str(caught)  # the others would be read for nothing
                    result = SimulationResult(name, error=full)
                mine.append(result)
                if not result.error:
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
    while (plan := comm.bcast(None)) is not None:
        try:
            project_block(comm, plan, lambda progress: None)
        except BindDataError:
            continue  # raised on all ranks together; the first one says it and ends the run


def check_world_size(comm: MPI.Intracomm, asked: int) -> None:
    """Make sure that the launcher started one job of the size asked for, and not several jobs of one rank.

    Raises
    ------
    BindDataError
        If it did not.
    """
    if comm.size != asked:
        raise BindDataError(
            f"Starting an MPI job of {asked} ranks: this process finds itself in one of {comm.size}. The launcher does "
            f"not belong to the MPI library that mpi4py uses ({MPI.Get_library_version().split(chr(10))[0].strip()}). "
            "Call the launcher of that library."
        )


def _node_of(comm: MPI.Intracomm, ranks_per_node: int | None) -> MPI.Intracomm:
    if ranks_per_node is not None:
        return cast(MPI.Intracomm, comm.Split(comm.rank // ranks_per_node, comm.rank))
    return cast(MPI.Intracomm, comm.Split_type(MPI.COMM_TYPE_SHARED, key=comm.rank))


def _compile_once(node: MPI.Intracomm, config: DatasetConfig) -> None:
    """Let one rank compile the kernels, so that the others find them in the cache."""

    def compile_them() -> None:
        positions = np.zeros((1, 3), dtype=np.float32)
        for masses in (1.0, np.ones(1, dtype=np.float32)):
            particles = ParticleMesh.build(positions, masses, config.depth)
            input_maps(particles, np.zeros(3), np.eye(3), config.windows, config.backend)
            target_map(particles, np.zeros(3), np.eye(3), config.windows, config.backend)

    together(node, compile_them if node.rank == 0 else lambda: None)


def _jobs(
    node: MPI.Intracomm,
    plan: BlockPlan,
    simulations: Sequence[SimulationPlan],
    progress: ProgressSink,
    ahead: ReadAhead["_Share"],
) -> list["_SimulationJob"]:
    jobs = [_SimulationJob(node, plan, simulation, progress, ahead) for simulation in simulations]
    for job, successor in pairwise(jobs):
        job.successor = successor
    return jobs


def _result_of(job: "_SimulationJob") -> SimulationResult:
    name = job.simulation.simulation
    try:
        return job.run()
    except _UnusableInputError as error:
        return SimulationResult(name, findings=tuple(error.findings))
    except SnapshotError as error:  # it could be read when it was screened
        return SimulationResult(name, findings=(unreadable(name, error),))
    except StorageFullError:
        raise
    except BindDataError as error:
        return SimulationResult(name, error=str(error))


class OutputError(BindDataError):
    """A sample that cannot be written, for another reason than a full disk."""


class _UnusableInputError(BindDataError):
    """Raised on all ranks of a node together, when a simulation turns out to be unusable."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("; ".join(finding.message for finding in findings))
        self.findings = findings


@dataclass(frozen=True)
class _Inputs:
    """What is known of a simulation's files before its particles are read."""

    headers: dict[Role, tuple[SnapshotHeader, ...]]
    sources: dict[Component, ComponentSource | SnapshotError]
    """The error where a component's files cannot be used."""


@dataclass(frozen=True)
class _Share:
    """A rank's part of a component, in file order."""

    positions: NDArray[np.float32]
    """(n, 3): Mpc/h."""
    masses: NDArray[np.float32] | None
    """(n,): Msun/h; None where all particles have one mass."""
    check: ContentCheck
    """What was seen of these particles."""


class _SimulationJob:
    """One simulation on the ranks of one node; all methods are collective unless they say otherwise."""

    def __init__(
        self,
        node: MPI.Intracomm,
        plan: BlockPlan,
        simulation: SimulationPlan,
        progress: ProgressSink,
        ahead: ReadAhead["_Share"],
    ) -> None:
        self.node = node
        self.config = plan.config
        self.run_id = plan.run_id
        self.simulation = simulation
        self.layout = DatasetLayout(plan.config.output_root, plan.config.set_name)
        self.progress = progress
        self.ahead = ahead
        self.successor: _SimulationJob | None = None
        self.seconds: dict[str, float] = {}
        self._opened: _Inputs | None = None
        self._last_report = 0.0

    def run(self) -> SimulationResult:
        """Read, project and write everything."""
        inputs = self.inputs()
        self._on_first_rank(self._remove_leftovers)
        shape = (self.maps_per_sample, self.config.resolution, self.config.resolution)
        per_batch = max(1, MAPS_MEMORY // (int(np.prod(shape)) * 4))
        targets = self.simulation.targets
        records: list[SampleRecord] = []
        findings: list[Finding] = []
        digests: dict[str, str] = {}
        for start in range(0, len(targets), per_batch):
            batch = targets[start : start + per_batch]
            following = self if start + per_batch < len(targets) else self.successor
            with shared_array(self.node, (len(batch), *shape), np.float32) as maps:
                findings, digests = self._fill(maps, batch, inputs, following)
                with self._timed("write"):
                    records += self._write(maps, batch)
        return SimulationResult(self.simulation.simulation, tuple(records), tuple(findings), digests, self.seconds)

    def inputs(self) -> _Inputs:
        """Return what is known of the files, looking at them the first time.

        Raises
        ------
        SnapshotError
            If a snapshot is not there or its header cannot be read.
        """
        if self._opened is None:
            self._opened = self._on_first_rank(self._open)
        return self._opened

    @property
    def maps_per_sample(self) -> int:
        """Condition, context maps and targets."""
        return 1 + len(self.config.context_sizes) + len(TARGET_CHANNELS)

    def _open(self) -> _Inputs:
        files = find_simulation(self.simulation.simulation, self.config)
        for inputs in (files.dmo, files.hydro):
            if not inputs.files:
                raise SnapshotError(
                    f"{inputs.folder}: expected one of {', '.join(inputs.expected)}, found none. The files were there "
                    "when this run began."
                )
        return _Inputs(
            headers={inputs.role: (read_header(inputs.files[0]),) for inputs in (files.dmo, files.hydro)},
            sources={component: self._source(component, files) for component in Component},
        )

    def _source(self, component: Component, files: SimulationFiles) -> ComponentSource | SnapshotError:
        inputs = files.dmo if component is Component.DMO else files.hydro
        try:
            return component_source(component, inputs.files, self.config)
        except SnapshotError as error:
            return error

    def _remove_leftovers(self) -> None:
        """Remove what killed runs left half written; not collective."""
        folder = self.layout.simulation_folder(self.simulation.split, self.simulation.simulation)
        try:
            remove_stale_temporaries(folder)
        except OSError as error:
            raise OutputError(f"Cannot write to {folder}: {error.strerror or error}.") from error

    def _fill(
        self,
        maps: NDArray[np.float32],
        targets: Sequence[Target],
        inputs: _Inputs,
        following: "_SimulationJob | None",
    ) -> tuple[list[Finding], dict[str, str]]:
        """Project every component onto the maps of every target.

        Returns the findings that block nothing, and the digests of the files read. While the last component is
        projected, the first one of `following` is read.
        """
        check = ContentCheck(self.simulation.simulation, inputs.headers[Role.DMO][0].box_size)
        components = list(Component)
        usable = True
        findings: list[Finding] = []
        for number, component in enumerate(components):
            with ExitStack() as stack:
                try:
                    with self._timed("read"):
                        particles = stack.enter_context(self._particles(component, inputs, check))
                except SnapshotError as error:
                    findings.append(unreadable(self.simulation.simulation, error))
                    usable = False
                    continue
                if number + 1 < len(components):
                    self._read_ahead(components[number + 1])
                elif following is not None:
                    following._read_ahead(components[0])
                usable = usable and not blocks(self._content_findings(check, inputs.headers))
                if usable:
                    with self._timed("project"):
                        self._project(component, particles, maps, targets)
                del particles  # or its memory would stay taken while the next ones are read
        findings += self._content_findings(check, inputs.headers)
        if blocks(findings):
            raise _UnusableInputError(findings)
        return findings, self._input_digests(check)

    def _read_ahead(self, component: Component) -> None:
        """Begin to read this rank's part of a component in the background."""
        if not self.ahead.enabled:
            return
        try:
            source = self.inputs().sources[component]
        except SnapshotError:
            return  # it is raised again, and dealt with, when the simulation's turn comes
        if isinstance(source, ComponentSource):
            self.ahead.start(self._key(component), partial(self._read_share, source))

    def _key(self, component: Component) -> tuple[str, str]:
        return (self.simulation.simulation, component.value)

    @contextmanager
    def _particles(self, component: Component, inputs: _Inputs, check: ContentCheck) -> Iterator[ParticleMesh]:
        """Sort a component's particles into a mesh in the node's shared memory."""
        source = inputs.sources[component]
        if isinstance(source, SnapshotError):
            raise source
        take = partial(self.ahead.take, self._key(component), partial(self._read_share, source))
        share = together(self.node, take)
        check.merge(share.check)
        positions, masses = share.positions, share.masses
        del share
        cells = cells_per_side_for(source.count, source.box_size)
        counts = cell_counts(positions, source.box_size, cells)
        before = np.zeros_like(counts)
        self.node.Exscan(counts, before)
        if self.node.rank == 0:
            before[:] = 0
        totals = np.empty_like(counts)
        self.node.Allreduce(counts, totals)
        cell_starts = np.concatenate([[0], np.cumsum(totals)])
        count = int(cell_starts[-1])
        next_slot = before
        next_slot += cell_starts[:-1]
        del counts, totals, before  # large on many ranks
        with ExitStack() as stack:
            sorted_positions = stack.enter_context(shared_array(self.node, (count, 3), np.float32))
            sorted_masses: NDArray[np.float32] | None = None
            mass: NDArray[np.float32] | float
            if source.uniform_mass is None:
                mass = sorted_masses = stack.enter_context(shared_array(self.node, (count,), np.float32))
            else:
                mass = source.uniform_mass
            scatter(positions, masses, next_slot, sorted_positions, sorted_masses, source.box_size, cells)
            del positions, masses, next_slot
            self.node.Barrier()
            yield ParticleMesh(sorted_positions, mass, cell_starts, cells, source.box_size)
            self.node.Barrier()

    def _read_share(self, source: ComponentSource) -> _Share:
        """Read this rank's part of the files; not collective, and safe in another thread."""
        check = ContentCheck(self.simulation.simulation, source.box_size)
        check.start(source.component, source.count)
        pieces = share_of(source.pieces, self.node.rank, self.node.size)
        count = sum(piece.stop - piece.start for piece in pieces)
        positions = np.empty((count, 3), dtype=np.float32)
        masses = np.empty(count, dtype=np.float32) if source.uniform_mass is None else None
        filled = 0
        for particles in read_slices(source, pieces):
            check.add(source.component, particles)
            end = filled + len(particles.positions)
            positions[filled:end] = particles.positions
            if masses is not None:
                masses[filled:end] = particles.masses
            filled = end
        return _Share(positions[:filled], None if masses is None else masses[:filled], check)

    def _project(
        self,
        component: Component,
        particles: ParticleMesh,
        maps: NDArray[np.float32],
        targets: Sequence[Target],
    ) -> None:
        windows, backend = self.config.windows, self.config.backend
        context_end = 1 + len(self.config.context_sizes)

        def project_mine() -> None:
            for index in indices:
                target = targets[index]
                center = np.array(target.halo_center)
                rotation = target.rotation_matrix(self.config)
                if component is Component.DMO:
                    maps[index, :context_end] = input_maps(particles, center, rotation, windows, backend)
                else:
                    channel = context_end + _TARGET_COMPONENTS.index(component)
                    maps[index, channel] = target_map(particles, center, rotation, windows, backend)
                self._report(component.value, index + 1, len(targets))

        with dealt_out(self.node, len(targets)) as indices:
            together(self.node, project_mine)

    def _write(self, maps: NDArray[np.float32], targets: Sequence[Target]) -> list[SampleRecord]:
        mine: dict[int, SampleRecord] = {}

        def write_mine() -> None:
            for index in indices:
                mine[index] = self._write_sample(maps[index], targets[index])
                self._report("write", index + 1, len(targets))

        with dealt_out(self.node, len(targets)) as indices:
            together(self.node, write_mine)
        gathered = self.node.gather(mine)
        records = {index: record for part in gathered or [] for index, record in part.items()}
        return [records[index] for index in sorted(records)]

    def _write_sample(self, maps: NDArray[np.float32], target: Target) -> SampleRecord:
        """Write one sample; not collective."""
        context_end = 1 + len(self.config.context_sizes)
        sample = Sample(
            condition=maps[0],
            large_scale=maps[1:context_end],
            target=maps[context_end:],
            params=np.array(self.simulation.parameters),
            halo_mass=target.halo_mass,
            halo_center=np.array(target.halo_center),
            rotation=target.rotation_matrix(self.config),
        )
        path = self.layout.sample_path(self.simulation.split, target.simulation, target.halo, target.rotation)
        waits = target.sample_id in self.simulation.replaced
        file = staged_path(self.layout, self.run_id, path) if waits else path
        try:
            written = write_sample(file, sample)
        except OSError as error:
            raise OutputError(
                f"Cannot write the sample {file}: {error.strerror or error}. What was recorded before stays; mend this "
                "and run again."
            ) from error
        return SampleRecord(
            sample_id=target.sample_id,
            path=self.layout.relative(path),
            bytes=written.bytes,
            sha256=written.sha256,
            masses=sample.map_masses(self.config.windows),
            written_to=self.layout.relative(file) if waits else "",
        )

    def _content_findings(self, check: ContentCheck, headers: dict[Role, tuple[SnapshotHeader, ...]]) -> list[Finding]:
        """Return, on every rank, what is wrong with the particles that all ranks have seen."""
        merged = self._merged(check)
        findings: list[Finding] = []
        if merged is not None:
            halos = {target.halo: target for target in self.simulation.targets}.values()
            merged.halo_centers = np.array([halo.halo_center for halo in halos])
            merged.halo_masses = np.array([halo.halo_mass for halo in halos])
            findings = merged.findings(self.config, headers)
        return self.node.bcast(findings)

    def _input_digests(self, check: ContentCheck) -> dict[str, str]:
        """Return, on every rank, the digest of each snapshot file that all ranks together have read."""
        merged = self._merged(check)

        def digests() -> dict[str, str]:
            files = find_simulation(self.simulation.simulation, self.config)
            particles = ParticleDigests() if merged is None else merged.digests
            return snapshot_digests((*files.dmo.files, *files.hydro.files), particles)

        return self._on_first_rank(digests)

    def _merged(self, check: ContentCheck) -> ContentCheck | None:
        """Return, on the node's first rank, what all of its ranks have seen; None on the others."""
        parts = self.node.gather(check)
        if parts is None:
            return None
        merged = ContentCheck(check.simulation, check.box_size)
        for part in parts:
            merged.merge(part)
        return merged

    def _on_first_rank(self, step: Callable[[], Result]) -> Result:
        """Do something on the node's first rank and return its result, or raise its error, on all."""
        outcome = together(self.node, step if self.node.rank == 0 else lambda: None)
        return self.node.bcast(outcome)

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def _report(self, phase: str, done: int, of: int) -> None:
        now = time.monotonic()
        if done == of or now - self._last_report >= _PROGRESS_INTERVAL:
            self._last_report = now
            self.progress(Progress(self.simulation.simulation, phase, done, of))


def result_file(folder: Path, simulation: str) -> Path:
    """Return the file that holds a simulation's result in a block's work folder."""
    return folder / f"{simulation}.result.json"


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a block from a plan file, and leave a result file for each simulation beside it."""
    parser = argparse.ArgumentParser(description="Make the samples of a block of simulations (an MPI program).")
    parser.add_argument("plan", type=Path, help="the block's plan, JSON")
    parser.add_argument("--ranks", type=int, required=True, help="number of ranks that the launcher was asked for")
    parser.add_argument("--watch-stdin", action="store_true", help="abort when standard input ends")
    options = parser.parse_args(arguments)
    comm = MPI.COMM_WORLD

    def save(result: SimulationResult) -> None:
        write_bytes(result_file(options.plan.parent, result.simulation), result.to_json().encode())

    try:
        check_world_size(comm, options.ranks)
        if options.watch_stdin and comm.rank == 0:
            watch_standard_input()
        plan = BlockPlan.from_json(options.plan.read_text(encoding="utf-8"))
        results = project_block(comm, plan, print_progress, on_result=save)
        errors = comm.bcast([f"{result.simulation}: {result.error}" for result in results if result.error])
    except BindDataError as error:  # on all ranks together
        errors = [f"{type(error).__name__}: {error}"]
    if errors:
        if comm.rank == 0:
            print("\n".join(errors), file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
