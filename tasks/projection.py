"""Task: make the samples of a block in one MPI job."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import Task, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from bind_core.plan import BlockPlan
from storage.files import write_bytes
from storage.results import SimulationResult
from tasks.launchers import JobFailedError, launcher
from tasks.progress import Progress

PLAN_FILE = "plan.json"
PROGRESS_FILE = "progress.jsonl"
STOP_FILE = "stop"


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
def project_block(block: int, plan: BlockPlan, folder: Path) -> dict[str, SimulationResult]:
    """Start a block's MPI job and wait for it.

    Parameters
    ----------
    block : int
        Number of the block.
    plan : BlockPlan
        What is to be made.
    folder : Path
        Work folder of the block. It receives the plan, the job's progress and its results; a file called `STOP_FILE`
        in it ends the job.

    Returns
    -------
    dict
        Result by simulation. If the task is repeated, simulations that are done already are not made again.

    Raises
    ------
    JobFailedError
        If the job ends with another status than 0.
    """
    logger = get_run_logger()
    results = results_in(folder, plan)
    rest = replace(plan, simulations=tuple(s for s in plan.simulations if s.simulation not in results))
    if not rest.simulations:
        return results
    write_bytes(folder / PLAN_FILE, rest.to_json().encode())
    ranks = plan.config.ranks
    logger.info("Starting %d MPI ranks for %d simulations", ranks, len(rest.simulations))
    with (folder / PROGRESS_FILE).open("a", encoding="utf-8", buffering=1) as progress:
        launcher(plan.config.launcher).run(
            "tasks.projection_job",
            [str(folder / PLAN_FILE), "--ranks", str(ranks), "--watch-stdin"],
            ranks,
            on_line=lambda line: print(line, file=progress),
            should_stop=(folder / STOP_FILE).exists,
        )
    results = results_in(folder, plan)
    for result in results.values():
        seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in result.seconds.items())
        logger.info("%s: %d samples (%s)", result.simulation, len(result.samples), seconds)
    return results


def results_in(folder: Path, plan: BlockPlan) -> dict[str, SimulationResult]:
    """Return the results that a block's jobs have left so far, by simulation."""
    results = {}
    for simulation in plan.simulations:
        path = folder / f"{simulation.simulation}.result.json"
        if path.exists():
            results[simulation.simulation] = SimulationResult.from_json(path.read_text(encoding="utf-8"))
    return results


def progress_in(folder: Path, position: int) -> tuple[list[Progress], int]:
    """Return the progress reports that a block's job has written after a position, and the new position."""
    path = folder / PROGRESS_FILE
    if not path.exists():
        return [], position
    with path.open("rb") as file:
        file.seek(position)
        text = file.read()
    whole = text.rpartition(b"\n")[0]
    reports = []
    for line in whole.splitlines():
        try:
            reports.append(Progress(**json.loads(line)))
        except (ValueError, TypeError):
            continue  # what a library printed
    return reports, position + (len(whole) + 1 if whole else 0)
