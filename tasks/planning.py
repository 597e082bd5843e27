"""Task: predicted samples minus committed ones."""

from collections.abc import Collection, Sequence

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from bind_core.config import DatasetConfig
from storage.manifest import Manifest
from storage.workload import Workload, plan_workload


@task(task_run_name="plan", cache_policy=NO_CACHE)
def plan_run(
    config: DatasetConfig,
    manifest: Manifest,
    simulations: Sequence[str] | None,
    refresh: bool,
    remake: Collection[str],
) -> Workload:
    """Compare what the configuration asks for with what the manifest has, and say what is stale."""
    workload = plan_workload(config, manifest, simulations, refresh=refresh, remake=remake)
    logger = get_run_logger()
    for work in workload.simulations:
        if work.stale:
            logger.warning("%s: %s", work.files.name, work.explanation)
    logger.info(
        "%d simulations, %d with work, %d samples to be made",
        len(workload.simulations),
        len(workload.outstanding),
        workload.samples,
    )
    return workload
