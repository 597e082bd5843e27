"""Task: which haloes, in which orientations, are to be projected."""

from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from bind_core.config import DatasetConfig
from bind_core.plan import BlockPlan
from storage.blocks import ScreenedSimulation, plan_block


@task(task_run_name="select targets of block {block}", cache_policy=NO_CACHE)
def select_targets(
    block: int, screened: Sequence[ScreenedSimulation], config: DatasetConfig, run_id: str
) -> BlockPlan | None:
    """Return what is to be projected of a block, or None if that is nothing."""
    plan = plan_block(screened, config, run_id, block)
    logger = get_run_logger()
    if plan is None:
        logger.info("Block %d: nothing to project", block)
        return None
    for simulation in plan.simulations:
        halos = len({target.halo for target in simulation.targets})
        logger.info("%s: %d samples of %d haloes", simulation.simulation, len(simulation.targets), halos)
    return plan
