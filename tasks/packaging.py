"""Task: verify what a block's job wrote, and turn it into outcomes."""

from collections.abc import Mapping, Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from bind_core.plan import BlockPlan
from storage.blocks import ScreenedSimulation, block_outcomes
from storage.layout import DatasetLayout
from storage.recording import SimulationOutcome
from storage.results import SimulationResult


@task(task_run_name="package block {block}", cache_policy=NO_CACHE, retries=1)
def package_block(
    block: int,
    layout: DatasetLayout,
    screened: Sequence[ScreenedSimulation],
    plan: BlockPlan | None,
    results: Mapping[str, SimulationResult],
    error: str,
) -> list[SimulationOutcome]:
    """Re-read and re-hash every sample of a block; return what became of each simulation."""
    logger = get_run_logger()
    outcomes = block_outcomes(layout, screened, plan, results, error)
    for outcome in outcomes:
        if outcome.error:
            logger.error("%s: %s", outcome.work.files.name, outcome.error)
        for finding in set(outcome.findings) - {f for s in screened for f in s.inspection.findings}:
            logger.error(finding.message)
    return outcomes
