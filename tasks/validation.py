"""Task: screen the input of a block's simulations."""

from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from bind_core.config import DatasetConfig
from bind_core.findings import Severity
from bind_core.parameters import ParameterTable
from storage.blocks import ScreenedSimulation, screen_block
from storage.workload import SimulationWork


@task(task_run_name="validate block {block}", cache_policy=NO_CACHE)
def validate_block(
    block: int, work: Sequence[SimulationWork], config: DatasetConfig, table: ParameterTable
) -> list[ScreenedSimulation]:
    """Screen the input of a block's simulations and log every finding."""
    logger = get_run_logger()
    screened = screen_block(work, config, table)
    for simulation in screened:
        for finding in simulation.inspection.findings:
            log = logger.error if finding.severity is Severity.ERROR else logger.warning
            log(finding.message)
    return screened
