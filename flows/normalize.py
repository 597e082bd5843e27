"""Normalization statistics of a data set, as a flow."""

from collections.abc import Collection
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from bind_core.errors import BindDataError
from bind_core.normalization import NormalizationStats
from flows.artifacts import leave_table
from flows.outcomes import failed
from flows.parameter_help import with_parameter_help
from storage.layout import DatasetLayout
from storage.manifest import layout_at
from storage.statistics import compute_statistics, write_statistics


@task(task_run_name="compute statistics", cache_policy=NO_CACHE)
def compute(
    layout: DatasetLayout, version: int | None, threads: int, quantiles: Collection[str] = ()
) -> NormalizationStats:
    """Read every sample of the train split once."""
    return compute_statistics(layout, version=version, threads=threads, quantiles=quantiles)


@task(task_run_name="write statistics", cache_policy=NO_CACHE)
def write(stats: NormalizationStats, folder: Path) -> list[Path]:
    """Write a file for each target channel, atomically."""
    return write_statistics(stats, folder)


@flow(name="normalize-dataset", flow_run_name="normalize {dataset}")
@with_parameter_help
def normalize_dataset(
    dataset: Path,
    version: int | None = None,
    output: Path | None = None,
    threads: int = 2,
    quantiles: tuple[str, ...] = (),
) -> list[Path] | State[list[Path]]:
    """Compute the normalization statistics of a data set's train split and write them.

    Each channel's transform is the one that the data set's dataset.yaml declares.

    Parameters
    ----------
    dataset : Path
        Root of the data set.
    version : int, optional
        Version of the manifest; the latest by default.
    output : Path, optional
        Folder for the files; by default the data set's ``data/``.
    threads : int
        Threads that read and compute.
    quantiles : tuple of str
        Channels that get a table of quantiles besides, e.g. stars.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    StatisticsError
        If the train split is empty or a sample is damaged, or there is no such channel.
    """
    try:
        layout = layout_at(dataset)
        stats = compute(layout, version, threads, quantiles)
        files = write(stats, output or layout.statistics_folder)
    except BindDataError as error:
        return failed(error)
    leave_table(
        [{name: _rounded(value) for name, value in row.items()} for row in stats.as_rows()],
        key="normalization",
        description=f"{stats.n_samples:,} samples, version {stats.manifest_version}; in {files[0].parent}",
    )
    what = f"Statistics of {stats.n_samples:,} samples in {files[0].parent}"
    get_run_logger().info(what)
    return Completed(message=what, data=files)


def _rounded(value: object) -> object:
    return float(f"{value:.7g}") if isinstance(value, float) else value
