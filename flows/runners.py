"""Where the blocks of a run are worked on: by threads of the flow's process, or by the workers of a Dask cluster.

A block's work is an MPI job of its own. A thread or worker only starts it, with `mpiexec`, and waits for its end; no
MPI is initialised in its process. So threads are all that one machine needs, and what Dask adds is other machines. A
cluster on this machine has real worker processes nevertheless, each with a nanny that starts it anew: they behave as
those of other machines do, when one is killed for instance, and they cost a run a few seconds in all. The MPI job of a
worker that dies notices the end of its standard input and ends too; Dask gives the block to another worker, which goes
on from what has been finished.

Workers report to the flow's own Prefect server, the embedded one included. Left alone, each would start one.
"""

import ipaddress
import logging
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dask
import distributed
from prefect.client.orchestration import get_client
from prefect.futures import PrefectWrappedFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect_dask import DaskTaskRunner

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError
from bind_core.runners import DaskSettings, RunnerName

BlockFuture = PrefectWrappedFuture[Any, Any]

_PRELOAD = "flows.dask_worker"
_ANY_PORT = ":0"
_WORKER_MEMORY = "1GiB"


class RunnerError(BindDataError):
    """A Dask cluster that cannot be had, or whose workers could not work."""


@contextmanager
def block_runner(config: DatasetConfig, folder: Path) -> Iterator[TaskRunner[Any]]:
    """Offer what works on blocks, and end it with all that it has started.

    Parameters
    ----------
    config : DatasetConfig
        Says which runner, and how many blocks at once.
    folder : Path
        Work folder of the run, for logs of the workers.

    Raises
    ------
    RunnerError
        If it cannot be had.
    """
    if config.runner is RunnerName.THREADS:
        with ThreadPoolTaskRunner[Any](max_workers=config.concurrent_blocks) as threads:
            yield threads
        return
    with ExitStack() as stack:
        stack.enter_context(temporary_settings({PREFECT_API_URL: _server_for_workers(config.dask)}))
        stack.enter_context(_quiet_dask())
        runner = stack.enter_context(_dask_runner(config, folder))
        _start(runner, config.dask)
        yield runner


def blocks_at_once(config: DatasetConfig) -> int:
    """Return the number of blocks that are worked on at the same time."""
    return config.dask.workers if config.runner is RunnerName.DASK else config.concurrent_blocks


def is_done(future: BlockFuture) -> bool:
    """Whether a task has come to an end, be it one that its state does not tell, such as the loss of its worker."""
    return bool(future.wrapped_future.done())


def slurm_options(config: DatasetConfig, folder: Path) -> dict[str, Any]:
    """Return the options of `dask_jobqueue.SLURMCluster` for jobs of one worker, which works on one block at a time.

    Parameters
    ----------
    config : DatasetConfig
        What a job asks for: cores for the ranks of a block, and the rest of `slurm_job`.
    folder : Path
        For the jobs' logs.
    """
    job = config.slurm_job
    return {
        "cores": 1,  # threads of the worker
        "processes": 1,
        "memory": _WORKER_MEMORY,  # must be given, but the next line overrules it: a job's memory is for SLURM to watch
        "worker_extra_args": ["--memory-limit", "0", "--preload", _PRELOAD],
        "job_cpu": config.ranks * job.cpus_per_rank,
        "job_mem": job.memory,
        "job_directives_skip": [] if job.memory else ["--mem="],
        "queue": job.partition,
        "account": job.account,
        "walltime": job.time_limit,
        "interface": config.dask.interface,
        # Dask submits lost jobs anew itself.
        "job_extra_directives": ["--no-requeue", *job.options],
        "job_name": "bind-data",
        "log_directory": str(folder),
        "scheduler_options": {"dashboard_address": _ANY_PORT},
    }


def _dask_runner(config: DatasetConfig, folder: Path) -> DaskTaskRunner:
    settings = config.dask
    if settings.address is not None:
        return DaskTaskRunner(address=settings.address)
    if settings.slurm:
        return DaskTaskRunner(
            cluster_class=_slurm_cluster(config, folder),
            cluster_kwargs=slurm_options(config, folder),
            # Other than a fixed number, this has jobs submitted anew that have come to their time limit or died.
            adapt_kwargs={"minimum_jobs": settings.workers, "maximum_jobs": settings.workers},
        )
    return DaskTaskRunner(
        cluster_class=distributed.LocalCluster,
        cluster_kwargs={
            "n_workers": settings.workers,
            "threads_per_worker": 1,
            "preload": [_PRELOAD],
            "dashboard_address": _ANY_PORT,
        },
    )


def _start(runner: DaskTaskRunner, settings: DaskSettings) -> None:
    """Start or reach the cluster now, and not with the first block."""
    try:
        _ = runner.client
    except (OSError, RuntimeError, ValueError) as error:
        if settings.address is None:
            raise RunnerError(f"The Dask cluster of {settings} cannot be started: {error}") from error
        raise RunnerError(
            f"The Dask scheduler {settings.address} cannot be reached: {error}. Start it with `dask scheduler`, or "
            "correct dask.address; without it, a cluster is started on this machine."
        ) from error


def slurm_script(config: DatasetConfig, folder: Path) -> str:
    """Return the script of a worker's job as SLURM gets it, but for the scheduler's address.

    Raises
    ------
    RunnerError
        If dask-jobqueue is not installed.
    """
    options = slurm_options(config, folder)
    del options["scheduler_options"]  # of the cluster, not of the job
    return str(_jobqueue().slurm.SLURMJob("tcp://scheduler:8786", name="worker", **options).job_script())


def _jobqueue() -> Any:
    """Import dask-jobqueue, and take back the Ctrl-C that it takes for itself."""
    ctrl_c = signal.getsignal(signal.SIGINT)
    try:
        import dask_jobqueue
    except ImportError as error:
        raise RunnerError(
            "dask.slurm asks for Dask workers as SLURM jobs, which needs dask-jobqueue: "
            "`pip install -c constraints.txt 'bind-data[dask-slurm]'`."
        ) from error
    if signal.getsignal(signal.SIGINT) is not ctrl_c:
        signal.signal(signal.SIGINT, ctrl_c)
    return dask_jobqueue


def _slurm_cluster(config: DatasetConfig, folder: Path) -> Any:
    """Return the class of clusters whose workers are SLURM jobs, if SLURM takes such jobs."""
    script = slurm_script(config, folder)
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise RunnerError(
            "dask.slurm asks for Dask workers as SLURM jobs, but there is no sbatch on the search path. Run this where "
            "jobs can be submitted, a login node for instance."
        )
    # A cluster would only log what SLURM says of a job that cannot be, and wait for its worker for ever.
    tried = subprocess.run([sbatch, "--test-only"], input=script, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        raise RunnerError(
            f"SLURM refuses the job of a Dask worker: {tried.stderr.strip()}\nCorrect slurm_job, or ranks, by which "
            f"cores are asked for. The job is\n{script}"
        )
    return _jobqueue().SLURMCluster


def _server_for_workers(settings: DaskSettings) -> str:
    """Return the address of the flow's Prefect server, if workers on other machines can reach it too."""
    with get_client(sync_client=True) as client:
        url = str(client.api_url)
    local = not settings.slurm and (settings.address is None or _is_loopback(settings.address))
    if not local and _is_loopback(url):
        raise RunnerError(
            f"The Dask workers run on other machines, which cannot reach the Prefect server at {url}. Start one with "
            "`prefect server start --host 0.0.0.0` and set PREFECT_API_URL to http://<name of this machine>:4200/api."
        )
    return url


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def _quiet_dask() -> Iterator[None]:
    """Keep Dask from reporting every connection, and from limiting the threads of this process and its children."""
    logger = logging.getLogger("distributed")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        # By default, OMP_NUM_THREADS and others are set in this process, for good.
        with dask.config.set({"distributed.nanny.pre-spawn-environ": {}}):
            yield
    finally:
        logger.setLevel(level)
