"""Task: commit a block's outcomes to the manifest."""

from collections.abc import Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from bind_core.config import DatasetConfig
from storage.manifest import Manifest
from storage.recording import SimulationOutcome, commit_outcomes


@task(task_run_name="record block {block}", cache_policy=NO_CACHE)
def record_block(
    block: int,
    manifest: Manifest,
    config: DatasetConfig,
    outcomes: Sequence[SimulationOutcome],
    run_id: str,
    repair: bool,
) -> dict[str, int]:
    """Commit a block; return the number of samples that now exist of it, by simulation."""
    statuses = commit_outcomes(manifest, config, outcomes, run_id, repair=repair)
    logger = get_run_logger()
    for simulation, status in statuses.items():
        logger.info("%s: %s", simulation, status.value)
    return {outcome.work.files.name: len(outcome.samples) for outcome in outcomes}
