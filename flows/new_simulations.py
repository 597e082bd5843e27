"""The flow that makes what has arrived since it last ran: for a schedule."""

from pathlib import Path
from typing import cast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prefect.utilities.annotations import quote

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError
from flows.artifacts import leave_table
from flows.generate import IncompleteRunError, generate_dataset
from flows.options import recorded
from flows.outcomes import failed
from flows.parameter_help import with_parameter_help
from storage.arrivals import Arrival, ArrivedSimulation, arrivals, names
from storage.layout import DatasetLayout
from storage.manifest import Manifest, open_dataset
from storage.preparation import with_absolute_paths
from storage.summary import RunSummary
from storage.workload import plan_workload


@task(task_run_name="look for new simulations", cache_policy=NO_CACHE)
def look_for_arrivals(config: DatasetConfig, manifest: Manifest, refresh: bool) -> tuple[ArrivedSimulation, ...]:
    """Compare the folders of the suite with what the manifest has on the last attempts."""
    arrived = arrivals(plan_workload(config, manifest, refresh=refresh), manifest)
    logger = get_run_logger()
    for simulation in arrived:
        if simulation.arrival is Arrival.STALE:
            logger.warning("%s is stale and left as it is: %s", simulation.name, simulation.work.explanation)
        elif simulation.arrival is not Arrival.SETTLED:
            logger.info("%s: %s", simulation.name, simulation.arrival.value)
    return arrived


@flow(name="new-simulations", flow_run_name="new simulations for {dataset}")
@with_parameter_help
def make_new_simulations(
    dataset: Path, refresh: bool = False, retry_failed: bool = False
) -> RunSummary | State[RunSummary] | None:
    """Find simulations that are new, or were completed or mended since their last attempt, and make just those.

    They are looked for where the data set's own ``dataset.yaml`` says, and made with its settings. A simulation whose
    input was refused is tried again when any of its files has changed, and not before.

    Parameters
    ----------
    dataset : Path
        Root of the data set.
    refresh : bool
        Make samples anew, too, whose input files were replaced since. What they were is kept.
    retry_failed : bool
        Try simulations again, too, whose last attempt failed though their input is sound.

    Returns
    -------
    RunSummary or None
        Where the simulations made stand; None if there was nothing new.

    Raises
    ------
    IncompleteRunError
        If one of them could not be made.
    BindDataError
        If there is no data set, or its suite is out of reach.
    """
    try:
        config = with_absolute_paths(recorded(dataset))
        manifest = open_dataset(DatasetLayout(config.output_root, config.set_name), config, refresh=refresh)
        arrived = look_for_arrivals(config, cast(Manifest, quote(manifest)), refresh)
    except BindDataError as error:
        return failed(error)
    wanted = (Arrival.NEW, Arrival.CHANGED, *((Arrival.UNFINISHED,) if retry_failed else ()))
    new = names(arrived, *wanted)
    others = [simulation for simulation in arrived if simulation.arrival is not Arrival.SETTLED]
    if others:
        leave_table(
            [simulation.as_row() for simulation in others],
            key="new-simulations",
            description=f"{len(new)} to be made: {', '.join(new) or 'none'}",
        )
    if not new:
        return Completed(message=_nothing_new(arrived))
    try:
        summary = cast(RunSummary, generate_dataset(config, new, refresh))
    except IncompleteRunError as error:
        return failed(error, str(error))
    except BindDataError as error:
        return failed(error)
    return Completed(message=summary.headline, data=summary)


def _nothing_new(arrived: tuple[ArrivedSimulation, ...]) -> str:
    left = [
        f"{len(of_kind)} {kind.value}: {', '.join(of_kind)}"
        for kind in (Arrival.UNFINISHED, Arrival.STILL_BLOCKED, Arrival.STALE)
        if (of_kind := names(arrived, kind))
    ]
    return "; ".join([f"None of {len(arrived)} simulations is new", *left])
