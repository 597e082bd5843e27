"""A block's MPI job from its plan to its results, with any launcher. Knows no Prefect."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bind_core.config import LauncherName
from bind_core.plan import BlockPlan
from storage.files import write_bytes
from storage.layout import DatasetLayout
from storage.results import SimulationResult
from tasks.block_files import PLAN_FILE, result_file, results_in
from tasks.launchers import (
    JobFailedError,
    JobRefusedError,
    JobTimedOutError,
    Launcher,
    Listener,
    MpiexecLauncher,
    MpiJob,
)
from tasks.sbatch import SbatchLauncher, wait_for_job
from tasks.slurm import SrunLauncher
from tasks.slurm_queue import JobOutOfSightError, QueueUnreachableError, SlurmQueue
from tasks.submitted_jobs import SubmittedJob, SubmittedJobs, job_name, work_digests

_VISIBLE_WITHIN = 60.0
"""Seconds after which a file that another host has written must be seen."""


class BlockJob:
    """The MPI job of a block.

    Parameters
    ----------
    plan : BlockPlan
        What is to be made.
    folder : Path
        Work folder of the block, below the data set's root; it receives the plan and the results.
    tell : callable
        Called with what a person would want to know.
    """

    def __init__(self, plan: BlockPlan, folder: Path, tell: Callable[[str], None] = lambda message: None) -> None:
        self.plan = plan
        self.folder = folder
        self.tell = tell
        self._layout = DatasetLayout(plan.config.output_root, plan.config.set_name)
        self._submitted = SubmittedJobs(self._layout)

    def run(self, listener: Listener) -> dict[str, SimulationResult]:
        """Make what has no result yet, and return all results by simulation.

        Jobs of an earlier, killed run that make some of it are waited for, and their results taken.

        Raises
        ------
        JobFailedError, JobRefusedError, JobStoppedError, Exception
            As `Launcher.run` does. Results that are there by then are taken the next time.
        """
        if self.plan.config.launcher is LauncherName.SBATCH:
            self._adopt(listener)
        before = results_in(self.folder, self.plan)
        rest = self._without(before)
        if not rest.simulations:
            return before
        self.tell(f"Starting {rest.config.ranks} MPI ranks for {len(rest.simulations)} simulations")
        write_bytes(self.folder / PLAN_FILE, rest.to_json().encode())
        starter = self._launcher(rest)
        try:
            starter.run(self._mpi_job(starter), listener)
        except JobTimedOutError as error:
            if len(results_in(self.folder, self.plan)) == len(before):
                raise JobRefusedError(f"{error}\nNo simulation was finished in that time, nor would be.") from error
            raise
        except JobOutOfSightError:
            raise
        except BaseException:
            self._submitted.forget(_names(rest))
            raise
        return self._results(rest)

    def script(self) -> str:
        """Return the job script that would be submitted; nothing is written.

        Raises
        ------
        LauncherMissingError
            As `SbatchLauncher.script` does.
        """
        starter = self._sbatch(self.plan)
        return starter.script(self._mpi_job(starter))

    def _without(self, results: dict[str, SimulationResult]) -> BlockPlan:
        return replace(self.plan, simulations=tuple(s for s in self.plan.simulations if s.simulation not in results))

    def _launcher(self, rest: BlockPlan) -> Launcher:
        name = rest.config.launcher
        if name is LauncherName.SBATCH:
            return self._sbatch(rest, note=True)
        return SrunLauncher() if name is LauncherName.SRUN else MpiexecLauncher()

    def _sbatch(self, rest: BlockPlan, *, note: bool = False) -> SbatchLauncher:
        digests = work_digests(rest)
        job = SubmittedJob(job_name(digests), self._layout.relative(self.folder))

        def submitted(number: str) -> None:
            self._submitted.note(replace(job, number=number), digests)
            self.tell(f"Submitted SLURM job {number} ({job.name})")

        if note:  # before it is submitted: a process that is killed in between finds the job by its name
            self._submitted.note(job, digests)
        comment = f"bind-data, {len(digests)} simulations for {self._layout.root}"
        return SbatchLauncher(rest.config.slurm_job, self.folder, job.name, comment, submitted)

    def _mpi_job(self, starter: Launcher) -> MpiJob:
        ranks = self.plan.config.ranks
        arguments = [str(self.folder / PLAN_FILE), "--ranks", str(ranks)]
        if starter.attached:
            arguments.append("--watch-stdin")
        return MpiJob("tasks.projection_job", tuple(arguments), ranks)

    def _adopt(self, listener: Listener) -> None:
        """Wait for the jobs that make some of the block already, and take their results."""
        digests = work_digests(self._without(results_in(self.folder, self.plan)))
        for job, simulations in self._submitted.making(digests).items():
            number = self._number_of(job)
            folder = self._layout.absolute(job.folder)
            results = [result_file(folder, name) for name in simulations]
            if number and self._ends_well(number, folder, listener):
                _missing(results, _VISIBLE_WITHIN)
            found = [result for result in results if result.exists()]
            if folder != self.folder:
                for result in found:
                    write_bytes(self.folder / result.name, result.read_bytes())
            if number:
                self.tell(f"SLURM job {number} has made {len(found)} of the {len(results)} simulations expected of it")
            self._submitted.forget(simulations)

    def _number_of(self, job: SubmittedJob) -> str | None:
        """Return the number of a job that an earlier process submitted, or None if it did not come so far."""
        try:
            return job.number or SlurmQueue().find(job.name)
        except QueueUnreachableError as error:
            raise JobFailedError(f"Cannot tell whether the job {job.name} was submitted: {error}") from error

    def _ends_well(self, number: str, folder: Path, listener: Listener) -> bool:
        """Wait for the end of an earlier run's job; return whether it was running, and has done what it should."""
        try:
            state = SlurmQueue().state(number)
        except QueueUnreachableError as error:
            raise JobFailedError(f"Cannot tell whether the SLURM job {number} is running: {error}") from error
        if state is None or state.ended:
            return False
        self.tell(f"Found SLURM job {number} of an earlier run, which is {state.state.lower()}: waiting for it")
        try:
            wait_for_job(number, folder, listener, self.plan.config.slurm_job.poll_interval)
        except JobOutOfSightError:
            raise
        except (JobFailedError, JobRefusedError) as error:
            self.tell(f"What it has not finished is submitted again: {error}")
            return False
        return True

    def _results(self, rest: BlockPlan) -> dict[str, SimulationResult]:
        """Return all results, once the job says that it has left them."""
        missing = _missing([result_file(self.folder, name) for name in _names(rest)], _VISIBLE_WITHIN)
        self._submitted.forget(_names(rest))
        if missing:
            raise JobFailedError(f"The job has ended without leaving {', '.join(map(str, missing))}.")
        return results_in(self.folder, self.plan)


def _names(plan: BlockPlan) -> list[str]:
    return [simulation.simulation for simulation in plan.simulations]


def _missing(files: Sequence[Path], patience: float) -> list[Path]:
    """Return those of some files that do not come into sight: a network file system may be late in telling."""
    deadline = time.monotonic() + patience
    while missing := [file for file in files if not file.exists()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    return missing
