"""Simulations taken through the rooms of a run one by one, in this process, so that a test can step in between."""

from collections.abc import Sequence
from dataclasses import dataclass

from mpi4py import MPI

from bind_core.config import DatasetConfig
from bind_core.parameters import find_parameter_file, read_parameter_table
from bind_core.plan import BlockPlan
from storage.blocks import ScreenedSimulation, block_outcomes, plan_block, screen_block
from storage.columns import SimulationStatus
from storage.layout import DatasetLayout
from storage.manifest import Manifest, open_dataset
from storage.recording import SimulationOutcome, commit_outcomes
from storage.results import SimulationResult
from storage.workload import SimulationWork, Workload, plan_workload
from tasks.projection_job import project_block


@dataclass(frozen=True)
class ProjectedBlock:
    """A block whose samples are on disk, and not yet in the manifest."""

    screened: list[ScreenedSimulation]
    plan: BlockPlan | None
    results: dict[str, SimulationResult]

    def paths(self, config: DatasetConfig) -> list:
        layout = layout_of(config)
        return [layout.absolute(sample.path) for result in self.results.values() for sample in result.samples]


def layout_of(config: DatasetConfig) -> DatasetLayout:
    return DatasetLayout(config.output_root, config.set_name)


def manifest_of(config: DatasetConfig) -> Manifest:
    return open_dataset(layout_of(config), config)


def workload_of(config: DatasetConfig, names: Sequence[str] | None = None) -> Workload:
    return plan_workload(config, manifest_of(config), names)


def work_of(config: DatasetConfig, name: str) -> SimulationWork:
    (work,) = workload_of(config, [name]).simulations
    return work


def project(config: DatasetConfig, names: Sequence[str] | None = None, run_id: str = "run") -> ProjectedBlock:
    """Project everything outstanding, as one block."""
    table = read_parameter_table(find_parameter_file(config))
    screened = screen_block(workload_of(config, names).outstanding, config, table)
    plan = plan_block(screened, config, run_id, 0)
    found = [] if plan is None else project_block(MPI.COMM_SELF, plan, lambda progress: None)
    return ProjectedBlock(screened, plan, {result.simulation: result for result in found})


def outcomes_of(config: DatasetConfig, block: ProjectedBlock, error: str = "") -> list[SimulationOutcome]:
    return block_outcomes(layout_of(config), block.screened, block.plan, block.results, error)


def record(
    config: DatasetConfig, block: ProjectedBlock, run_id: str = "run", error: str = ""
) -> dict[str, SimulationStatus]:
    return commit_outcomes(manifest_of(config), config, outcomes_of(config, block, error), run_id)


def make(config: DatasetConfig, names: Sequence[str] | None = None, run_id: str = "run") -> dict[str, SimulationStatus]:
    """Make and record everything outstanding; return the status of each simulation worked on."""
    return record(config, project(config, names, run_id), run_id)


def refresh(config: DatasetConfig, names: list[str] | None = None, run_id: str = "again", **plan: object) -> dict:
    """Do a run that makes stale samples anew, as one block."""
    manifest = open_dataset(layout_of(config), config, refresh=True)
    manifest.finish_interrupted()
    workload = plan_workload(config, manifest, names, **({"refresh": True} | plan))  # type: ignore[arg-type]
    if not workload.outstanding:
        return {}
    screened = screen_block(workload.outstanding, config, read_parameter_table(find_parameter_file(config)))
    block = plan_block(screened, config, run_id, 0)
    found = [] if block is None else project_block(MPI.COMM_SELF, block, lambda progress: None)
    outcomes = block_outcomes(layout_of(config), screened, block, {result.simulation: result for result in found})
    return commit_outcomes(manifest, config, outcomes, run_id)


def times(config: DatasetConfig) -> dict:
    """Return when each sample was last modified, in nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in config.output_root.rglob("*.npz")}
