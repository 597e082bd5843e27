"""A block of simulations, before and after its projection: screened, planned, verified."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bind_core.config import DatasetConfig
from bind_core.memory_need import job_memory, memory_need, ranks_per_node, shown_bytes
from bind_core.parameters import ParameterTable
from bind_core.plan import BlockPlan, SimulationPlan
from bind_core.splits import split_of
from bind_core.suite import Role
from bind_core.validation import Inspection, screen_simulation
from storage.files import sha256_of
from storage.layout import DatasetLayout
from storage.provenance import PARAMETERS, Inputs, describe_inputs, differences, with_snapshot_digests
from storage.recording import SimulationOutcome
from storage.replacement import is_staged_for
from storage.results import SampleRecord, SimulationResult
from storage.workload import SimulationWork


@dataclass(frozen=True)
class ScreenedSimulation:
    """A simulation whose input was looked at, and what is to be projected of it."""

    work: SimulationWork
    inspection: Inspection
    inputs: Inputs
    """The inputs, described before they were read."""
    problem: str = ""
    """Why nothing can be made of it now, though its input may be valid."""


def screen_block(
    block: Sequence[SimulationWork], config: DatasetConfig, table: ParameterTable
) -> list[ScreenedSimulation]:
    """Validate the input of a block's simulations, as far as the projection will not do so itself."""
    screened = []
    for work in block:
        inputs = describe_inputs(work.files, table, [work.inputs])
        inspection = screen_simulation(work.files, config, table)
        problem = _changed_since(work.inputs, inputs) or _too_large(work, inspection, config)
        screened.append(ScreenedSimulation(work, inspection, inputs, problem))
    return screened


def plan_block(
    screened: Sequence[ScreenedSimulation], config: DatasetConfig, run_id: str, block: int
) -> BlockPlan | None:
    """Return what is to be projected of a block, or None if that is nothing."""
    plans = [plan for simulation in screened if (plan := _simulation_plan(simulation, config)) is not None]
    return BlockPlan(config, run_id, block, tuple(plans)) if plans else None


def block_outcomes(
    layout: DatasetLayout,
    screened: Sequence[ScreenedSimulation],
    plan: BlockPlan | None,
    results: Mapping[str, SimulationResult],
    error: str = "",
) -> list[SimulationOutcome]:
    """Say what became of each simulation of a block, trusting only files that are there and whole.

    Parameters
    ----------
    layout : DatasetLayout
        Where the samples are.
    screened : sequence of ScreenedSimulation
        All simulations of the block.
    plan : BlockPlan or None
        What was to be projected.
    results : mapping
        What the projection says it made, by simulation.
    error : str
        Why the projection ended early, if it did.

    Returns
    -------
    list of SimulationOutcome
        In the order of `screened`. A sample that was not planned, or whose file is missing, elsewhere, or differs
        from what the projection says it wrote, is left out, and the outcome's error names it.
    """
    planned = {} if plan is None else {simulation.simulation: simulation for simulation in plan.simulations}
    outcomes = []
    for simulation in screened:
        name = simulation.work.files.name
        simulation_plan, result = planned.get(name), results.get(name)
        findings = simulation.inspection.findings
        inputs = simulation.inputs
        samples: tuple[SampleRecord, ...] = ()
        problem = simulation.problem
        if simulation_plan is not None:
            if result is None:
                problem = error or "The projection left no result."
            else:
                findings += result.findings
                inputs = with_snapshot_digests(inputs, result.input_digests)
                samples, unverified = _verified(layout, simulation_plan, result)
                problem = result.error or unverified
        outcomes.append(SimulationOutcome(simulation.work, findings, inputs, simulation_plan, samples, problem))
    return outcomes


def _simulation_plan(screened: ScreenedSimulation, config: DatasetConfig) -> SimulationPlan | None:
    work, inspection = screened.work, screened.inspection
    if inspection.blocked or inspection.parameters is None or screened.problem or not work.to_make:
        return None
    return SimulationPlan(
        simulation=work.files.name,
        split=split_of(work.files.name, work.files.number, config),
        parameters=tuple(inspection.parameters.tolist()),
        targets=work.to_make,
        replaced=work.replaced,
    )


def _verified(
    layout: DatasetLayout, plan: SimulationPlan, result: SimulationResult
) -> tuple[tuple[SampleRecord, ...], str]:
    """Return the samples whose files are as reported, and a sentence about the first of the others."""
    targets = {target.sample_id: target for target in plan.targets}
    good: list[SampleRecord] = []
    problems: list[str] = []
    for record in result.samples:
        target = targets.pop(record.sample_id, None)
        place = (
            None if target is None else layout.sample_path(plan.split, plan.simulation, target.halo, target.rotation)
        )
        if place is None or not _is_written_for(layout, record, layout.relative(place)):
            problems.append(f"{record.sample_id} at {record.file} is not among the samples that were to be made")
            continue
        path = layout.absolute(record.file)
        try:
            found = (path.stat().st_size, sha256_of(path))
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror or error}")
            continue
        if found == (record.bytes, record.sha256):
            good.append(record)
        else:
            problems.append(
                f"{path} should have {record.bytes} bytes and SHA-256 {record.sha256}, found {found[0]} and {found[1]}"
            )
    if not problems:
        return tuple(good), ""
    how_many = f"{len(problems)} samples are not as they were" if len(problems) > 1 else "1 sample is not as it was"
    return tuple(good), f"{how_many} written: {problems[0]}"


def _is_written_for(layout: DatasetLayout, record: SampleRecord, place: str) -> bool:
    """Whether a sample lies in its place, or is staged for it, by whichever run."""
    return record.path == place and (record.file == place or is_staged_for(layout, record.file, place))


def _too_large(work: SimulationWork, inspection: Inspection, config: DatasetConfig) -> str:
    """Say why a simulation does not fit into the memory that its SLURM job would ask for, if it does not."""
    there = job_memory(config)
    if there is None or inspection.blocked or not work.to_make:
        return ""
    headers = {role: headers[0] for role, headers in inspection.headers.items()}
    need = memory_need(work.files.name, config, headers, len(work.to_make), ranks_per_node(config))
    if need.certain <= there:
        return ""
    return (
        f"Making the samples of {need.simulation} takes at least {shown_bytes(need.certain)} of memory on one node "
        f"({need}), but slurm_job.memory is {config.slurm_job.memory}. No job was submitted for it. Ask for "
        f"{shown_bytes(need.expected)} or more."
    )


def _changed_since(planned: Inputs, now: Inputs) -> str:
    """Say what has changed of the inputs that the plan was made from, if anything has."""
    kinds = (Role.CATALOGUE.value, PARAMETERS)
    before, after = (tuple(file for file in inputs if file.role in kinds) for inputs in (planned, now))
    changes = differences(before, after)
    return f"Its input has changed since this run was planned; run again. {'; '.join(changes)}" if changes else ""
