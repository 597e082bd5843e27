"""A version's samples packed into few large files, as a flow."""

from collections.abc import Callable
from pathlib import Path
from typing import cast
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from bind_core.errors import BindDataError
from flows.artifacts import leave_table
from flows.outcomes import failed
from flows.parameter_help import with_parameter_help
from storage.layout import DatasetLayout
from storage.manifest import layout_at
from storage.shards import Pack, PackFormat, pack
from storage.versions import resolve_version


@task(task_run_name="pack version {version} as {pack_format}", cache_policy=NO_CACHE)
def write_pack(
    layout: DatasetLayout,
    version: str | int | None,
    folder: Path | None,
    where: str,
    pack_format: PackFormat,
    threads: int,
    progress: Callable[[int, int], None],
) -> Pack:
    """Write all shards or tar files that are not there yet."""
    meant = resolve_version(layout, version)
    return pack(layout, meant, folder, where=where, pack_format=pack_format, threads=threads, progress=progress)


@flow(name="pack-dataset", flow_run_name="pack {dataset}")
@with_parameter_help
def pack_dataset(
    dataset: Path,
    version: str | int | None = None,
    where: str = "",
    pack_format: PackFormat = PackFormat.ZARR,
    output: Path | None = None,
    threads: int = 2,
) -> Pack | State[Pack]:
    """Pack the samples of a version into few large files, for training.

    A run that was killed is taken up again by the next one; a pack that is there is left as it is.

    Parameters
    ----------
    dataset : Path
        Root of the data set.
    version : str or int, optional
        Number or tag of the version; the latest by default.
    where : str
        Condition in SQL that samples are to fulfil, e.g. halo_mass > 3e13; by default all are packed.
    pack_format : PackFormat
        Zarr shards, which are read at random, or tar files, which WebDataset streams.
    output : Path, optional
        The pack's folder, to be made; by default one in the data set's packs/.
    threads : int
        Threads that read.

    Returns
    -------
    Pack
        What was made.

    Raises
    ------
    BindDataError
        If there is nothing to pack, or a sample's file is not the one that was recorded.
    """
    artifact = cast(UUID, create_progress_artifact(0.0, key="packing-progress", description="Samples packed"))

    def progress(done: int, total: int) -> None:
        update_progress_artifact(artifact, progress=100.0 * done / total)

    try:
        made = write_pack(layout_at(dataset), version, output, where, pack_format, threads, progress)
    except BindDataError as error:
        return failed(error)
    update_progress_artifact(artifact, progress=100.0)
    what = f"{made.identity.n_samples:,} samples of version {made.identity.version} in {made.folder}"
    leave_table(
        [{"what": name, "value": str(value)} for name, value in made.as_dict().items()], key="pack", description=what
    )
    get_run_logger().info(what)
    return Completed(message=what, data=made)
