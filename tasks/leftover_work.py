"""Work folders that killed runs have left. Knows no Prefect."""

import shutil
from contextlib import AbstractContextManager
from pathlib import Path

from storage.files import held, is_held
from storage.layout import DatasetLayout
from tasks.submitted_jobs import SubmittedJobs

_LOCK = "run.lock"
"""In the work folder of a run for as long as it runs; beyond that, where it was killed."""


def work_kept(run_folder: Path) -> AbstractContextManager[None]:
    """Keep other runs from taking the work folder of this one for a killed run's."""
    return held(run_folder / _LOCK)


def remove_killed_work(layout: DatasetLayout) -> None:
    """Remove the work folders of runs that were killed, since nobody uses what is in them any more.

    Those of runs that are at work stay, and so do those that a submitted job may be writing to, and what runs that came
    to their end have left of blocks that failed.
    """
    noted = SubmittedJobs(layout).folders()
    for lock in layout.work_folder.glob(f"*/{_LOCK}"):
        if not is_held(lock) and not any(folder.is_relative_to(lock.parent) for folder in noted):
            shutil.rmtree(lock.parent, ignore_errors=True)
