"""One simulation on the ranks of one node: read, projected and written. Knows no Prefect."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from bind_core.content import ContentCheck
from bind_core.digests import ParticleDigests
from bind_core.errors import BindDataError, SnapshotError
from bind_core.field_reading import ParticlePass, passes_of, target_stack
from bind_core.findings import Finding, blocks
from bind_core.input_checks import unreadable
from bind_core.inputs import snapshot_digests
from bind_core.maps import input_maps, target_map
from bind_core.memory_need import MAPS_MEMORY, map_bytes_per_sample, maps_per_sample, memory_need
from bind_core.mesh import ParticleMesh, cell_counts, cells_per_side_for, scatter
from bind_core.particles import ComponentSource, component_source, read_slices, share_of
from bind_core.plan import BlockPlan, SimulationPlan, Target
from bind_core.sample import Sample
from bind_core.snapshot import Component, SnapshotHeader, read_header
from bind_core.suite import Role, SimulationFiles, find_simulation
from storage.faults import Step, passing
from storage.files import remove_stale_temporaries
from storage.layout import DatasetLayout
from storage.replacement import staged_path
from storage.results import SampleRecord, SimulationResult
from storage.samples import write_sample
from tasks.node_memory import InsufficientMemoryError, NodeMemory
from tasks.progress import Progress, ProgressSink
from tasks.read_ahead import ReadAhead
from tasks.shared_memory import dealt_out, shared_array, together

Result = TypeVar("Result")

_PROGRESS_INTERVAL = 0.25


class OutputError(BindDataError):
    """A sample that cannot be written, for another reason than a full disk."""


class UnusableInputError(BindDataError):
    """Raised on all ranks of a node together, when a simulation turns out to be unusable."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        super().__init__("; ".join(finding.message for finding in findings))
        self.findings = findings


@dataclass(frozen=True)
class _Inputs:
    """What is known of a simulation's files before its particles are read."""

    headers: dict[Role, tuple[SnapshotHeader, ...]]
    sources: dict[ParticlePass, ComponentSource | SnapshotError]
    """The error where the files of a component or field cannot be used."""


@dataclass(frozen=True)
class Share:
    """A rank's part of a component, in file order."""

    positions: NDArray[np.float32]
    """(n, 3): Mpc/h."""
    masses: NDArray[np.float32] | None
    """(n,): Msun/h; None where all particles have one mass."""
    check: ContentCheck
    """What was seen of these particles."""


class SimulationJob:
    """One simulation on the ranks of one node; all methods are collective unless they say otherwise."""

    def __init__(
        self,
        node: MPI.Intracomm,
        plan: BlockPlan,
        simulation: SimulationPlan,
        progress: ProgressSink,
        ahead: ReadAhead["Share"],
        memory: NodeMemory | None,
    ) -> None:
        self.node = node
        self.config = plan.config
        self.passes = passes_of(plan.config)
        self.run_id = plan.run_id
        self.simulation = simulation
        self.layout = DatasetLayout(plan.config.output_root, plan.config.set_name)
        self.progress = progress
        self.ahead = ahead
        self.memory = memory
        self.successor: SimulationJob | None = None
        self.seconds: dict[str, float] = {}
        self._opened: _Inputs | None = None
        self._last_report = 0.0

    def run(self) -> SimulationResult:
        """Read, project and write everything."""
        inputs = self.inputs()
        self._on_first_rank(self._remove_leftovers)
        shape = (maps_per_sample(self.config), self.config.resolution, self.config.resolution)
        per_batch = max(1, MAPS_MEMORY // map_bytes_per_sample(self.config))
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
        InsufficientMemoryError
            If the node has not enough memory for what the headers count.
        """
        if self._opened is None:
            self._opened = self._on_first_rank(self._open)
        return self._opened

    def _open(self) -> _Inputs:
        files = find_simulation(self.simulation.simulation, self.config)
        for inputs in (files.dmo, files.hydro):
            if not inputs.files:
                raise SnapshotError(
                    f"{inputs.folder}: expected one of {', '.join(inputs.expected)}, found none. The files were there "
                    "when this run began."
                )
        headers = {inputs.role: read_header(inputs.files[0]) for inputs in (files.dmo, files.hydro)}
        if self.memory is not None:  # before the files are divided into pieces, of which there may be too many already
            samples, ranks = len(self.simulation.targets), self.node.size
            self.memory.require(memory_need(self.simulation.simulation, self.config, headers, samples, ranks))
        return _Inputs(
            headers={role: (header,) for role, header in headers.items()},
            sources={component: self._source(component, files) for component in self.passes},
        )

    def _source(self, component: ParticlePass, files: SimulationFiles) -> ComponentSource | SnapshotError:
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
        following: "SimulationJob | None",
    ) -> tuple[list[Finding], dict[str, str]]:
        """Project every component, and every further field, onto the maps of every target.

        Returns the findings that block nothing, and the digests of the files read. While the last component is
        projected, the first one of `following` is read.
        """
        check = ContentCheck(self.simulation.simulation, inputs.headers[Role.DMO][0].box_size)
        components = self.passes
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
            raise UnusableInputError(findings)
        return findings, self._input_digests(check)

    def _read_ahead(self, component: ParticlePass) -> None:
        """Begin to read this rank's part of a component in the background."""
        if not self.ahead.enabled:
            return
        try:
            source = self.inputs().sources[component]
        except (SnapshotError, InsufficientMemoryError):
            return  # it is raised again, and dealt with, when the simulation's turn comes
        if isinstance(source, ComponentSource):
            self.ahead.start(self._key(component), partial(self._read_share, source))

    def _key(self, component: ParticlePass) -> tuple[str, ParticlePass]:
        return (self.simulation.simulation, component)

    @contextmanager
    def _particles(self, component: ParticlePass, inputs: _Inputs, check: ContentCheck) -> Iterator[ParticleMesh]:
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

    def _read_share(self, source: ComponentSource) -> Share:
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
            passing(Step.WITHIN_READING)
        return Share(positions[:filled], None if masses is None else masses[:filled], check)

    def _project(
        self,
        component: ParticlePass,
        particles: ParticleMesh,
        maps: NDArray[np.float32],
        targets: Sequence[Target],
    ) -> None:
        windows, backend = self.config.windows, self.config.backend
        context_end = 1 + len(self.config.context_sizes)
        channel = context_end - 1 + self.passes.index(component)  # the first one has the condition and context maps

        def project_mine() -> None:
            for index in indices:
                target = targets[index]
                center = np.array(target.halo_center)
                rotation = target.rotation_matrix(self.config)
                if component is Component.DMO:
                    maps[index, :context_end] = input_maps(particles, center, rotation, windows, backend)
                else:
                    maps[index, channel] = target_map(particles, center, rotation, windows, backend)
                self._report(component.value, index + 1, len(targets))

        with dealt_out(self.node, len(targets)) as indices:
            together(self.node, project_mine)

    def _write(self, maps: NDArray[np.float32], targets: Sequence[Target]) -> list[SampleRecord]:
        mine: dict[int, SampleRecord] = {}

        def write_mine() -> None:
            for index in indices:
                mine[index] = self._write_sample(maps[index], targets[index])
                passing(Step.BETWEEN_SAMPLES)
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
            target=target_stack(maps[context_end:], self.config.extra_fields),
            params=np.array(self.simulation.parameters),
            halo_mass=target.halo_mass,
            halo_center=np.array(target.halo_center),
            rotation=target.rotation_matrix(self.config),
            target_channels=self.config.target_channels,
        )
        path = self.layout.own_sample_path(self.simulation.split, target.simulation, target.halo, target.rotation)
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
