"""What a block's MPI job and whoever started it leave each other in the block's work folder. Knows no Prefect."""

from contextlib import suppress
from pathlib import Path

from bind_core.plan import BlockPlan
from bind_core.records import RecordError, record_from_json
from storage.results import SimulationResult
from tasks.progress import Progress

BLOCK_FILE = "block.json"
"""All that is to be made."""
PLAN_FILE = "plan.json"
"""What one job is to make of it."""
PROGRESS_FILE = "progress.jsonl"
ERRORS_FILE = "errors.log"
STOP_FILE = "stop"


def block_folder(run_folder: Path, block: int) -> Path:
    """Return the work folder of a block in that of its run."""
    return run_folder / f"block_{block:05d}"


def result_file(folder: Path, simulation: str) -> Path:
    """Return the file that holds a simulation's result in a block's work folder."""
    return folder / f"{simulation}.result.json"


def results_in(folder: Path, plan: BlockPlan) -> dict[str, SimulationResult]:
    """Return the results that a block's jobs have left so far, by simulation; a damaged one is as good as none."""
    results = {}
    for simulation in plan.simulations:
        path = result_file(folder, simulation.simulation)
        with suppress(FileNotFoundError, RecordError):
            results[simulation.simulation] = SimulationResult.from_json(path.read_bytes(), path)
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
            reports.append(record_from_json(Progress, line, path))
        except RecordError:
            continue  # what a library printed
    return reports, position + (len(whole) + 1 if whole else 0)
