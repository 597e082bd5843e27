"""Task: make the samples of a block in one MPI job."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from bind_core.plan import BlockPlan
from storage.results import SimulationResult
from tasks.block_files import BLOCK_FILE, ERRORS_FILE, PROGRESS_FILE, STOP_FILE
from tasks.block_job import BlockJob
from tasks.launchers import JobFailedError, Listener
from tasks.rank_messages import level_of

_MOST_LOGGED = 1000
"""Lines of a job's standard error that go to the run's log."""


async def may_pass(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Return whether a failure may pass by itself: a job or the file system failed, and not the input."""
    try:
        await state.result()
    except (JobFailedError, OSError):
        return True
    except Exception:
        return False
    return False


@task(task_run_name="project block {block}", cache_policy=NO_CACHE, retry_condition_fn=may_pass)
def project_block(block: int, folder: Path) -> dict[str, SimulationResult]:
    """Start a block's MPI job and wait for it.

    The plan comes as a file, so that it need not travel through task runners, which would look at every target.

    Parameters
    ----------
    block : int
        Number of the block.
    folder : Path
        Work folder of the block, with its plan in `BLOCK_FILE`. It receives the job's plan, progress, warnings and
        results; a file called `STOP_FILE` in it ends the job.

    Returns
    -------
    dict
        Result by simulation. If the task is repeated, simulations that are done already are not made again.

    Raises
    ------
    JobFailedError
        If the job ends with another status than 0; repeating it may help.
    JobRefusedError
        If it cannot be run as it was asked for, or needs more than it was given.
    """
    logger = get_run_logger()
    plan = BlockPlan.from_json((folder / BLOCK_FILE).read_bytes(), folder / BLOCK_FILE)
    with (
        (folder / PROGRESS_FILE).open("a", encoding="utf-8", buffering=1) as progress,
        (folder / ERRORS_FILE).open("a", encoding="utf-8", buffering=1) as errors,
    ):
        log = _logs_to(logger)

        def take_error(line: str) -> None:
            print(line, file=errors)
            log(line)

        listener = Listener(
            on_line=lambda line: print(line, file=progress),
            on_error_line=take_error,
            should_stop=(folder / STOP_FILE).exists,
        )
        results = BlockJob(plan, folder, logger.info).run(listener)
    for result in results.values():
        seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in result.seconds.items())
        logger.info("%s: %d samples (%s)", result.simulation, len(result.samples), seconds)
    return results


def _logs_to(logger: "logging.Logger | logging.LoggerAdapter[Any]") -> Callable[[str], None]:
    """Return what logs the lines of a job's standard error as warnings and errors, up to a number that can be read."""
    logged = 0

    def log(line: str) -> None:
        nonlocal logged
        if not line.strip():
            return
        logged += 1
        if logged <= _MOST_LOGGED:
            logger.log(level_of(line), "%s", line)
        elif logged == _MOST_LOGGED + 1:
            logger.warning("The job says more than %d lines; the rest is in %s only", _MOST_LOGGED, ERRORS_FILE)

    return log
