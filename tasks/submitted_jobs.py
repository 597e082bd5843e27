"""Which SLURM jobs are making which simulations: small files beside the runs' work, by which a later run finds them.

A run that is killed leaves its jobs running. The next one has another name and another folder, and may divide the
simulations into other blocks; so a job is found by what it makes of each simulation. Knows no Prefect.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from bind_core.config import DatasetConfig
from bind_core.plan import BlockPlan, SimulationPlan
from bind_core.records import RecordError, record_from_json
from bind_core.sample import OUTPUT_VERSION
from bind_core.suite import find_simulation
from storage.files import write_bytes
from storage.layout import DatasetLayout, LayoutError

_FOLDER = "jobs"
_NAME = re.compile(r"bind-[0-9a-f]{16}")
"""What `job_name` returns."""
_NUMBER = re.compile(r"[0-9]{0,20}")


@dataclass(frozen=True)
class SubmittedJob:
    """A job that was submitted, or was about to be."""

    name: str
    """In the queue."""
    folder: str
    """Where its results and its output go, relative to the data set's root."""
    number: str = ""
    """Empty until SLURM has given it one."""


@dataclass(frozen=True)
class _Note(SubmittedJob):
    digest: str = ""
    """Of what the job makes of a simulation."""


class SubmittedJobs:
    """The jobs of a data set that may be running.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    """

    def __init__(self, layout: DatasetLayout) -> None:
        self.layout = layout

    def note(self, job: SubmittedJob, digests: Mapping[str, str]) -> None:
        """Write down that a job makes some simulations.

        Parameters
        ----------
        job : SubmittedJob
            The job.
        digests : mapping
            What it makes of each simulation, as `work_digests` returns it.
        """
        for simulation, digest in digests.items():
            write_bytes(self._file(simulation), json.dumps({"digest": digest, **asdict(job)}).encode())

    def making(self, digests: Mapping[str, str]) -> dict[SubmittedJob, list[str]]:
        """Return the jobs that make just what some simulations need, each with these simulations.

        What was not written by `note` is passed over: its simulations are made again.
        """
        jobs: dict[SubmittedJob, list[str]] = {}
        for simulation, digest in digests.items():
            note = self._noted(self._file(simulation))
            if note is not None and note.digest == digest:
                jobs.setdefault(SubmittedJob(note.name, note.folder, note.number), []).append(simulation)
        return jobs

    def folders(self) -> list[Path]:
        """Return where all of the jobs put their results and their output."""
        notes = [self._noted(file) for file in (self.layout.work_folder / _FOLDER).glob("*.json")]
        return [self.layout.absolute(note.folder) for note in notes if note is not None]

    def _noted(self, file: Path) -> "_Note | None":
        try:
            note = record_from_json(_Note, file.read_bytes(), file)
            in_work = self.layout.absolute(note.folder).is_relative_to(self.layout.work_folder)
        except (FileNotFoundError, RecordError, LayoutError):
            return None
        names_a_job = _NAME.fullmatch(note.name) and _NUMBER.fullmatch(note.number)
        return note if in_work and names_a_job else None

    def forget(self, simulations: Iterable[str]) -> None:
        """Drop what is known of the jobs of some simulations."""
        for simulation in simulations:
            self._file(simulation).unlink(missing_ok=True)

    def _file(self, simulation: str) -> Path:
        return self.layout.work_folder / _FOLDER / f"{simulation}.json"


def work_digests(plan: BlockPlan) -> dict[str, str]:
    """Return a digest of what is to be made of each simulation of a block: of what, from what, into which data set.

    It does not depend on the run, the block, or how the work is done.
    """
    return {simulation.simulation: _work_digest(plan.config, simulation) for simulation in plan.simulations}


def job_name(digests: Mapping[str, str]) -> str:
    """Return a name for the job that makes some simulations."""
    together = hashlib.sha256("\n".join(sorted(digests.values())).encode()).hexdigest()
    return f"bind-{together[:16]}"


def _work_digest(config: DatasetConfig, simulation: SimulationPlan) -> str:
    files = find_simulation(simulation.simulation, config)
    inputs = []
    for role in files.roles():
        for path in role.files:
            facts = path.stat()
            inputs.append((str(path), facts.st_size, facts.st_mtime_ns))
    work = {
        "root": str(config.output_root.absolute()),
        "content": config.content,
        "output_version": OUTPUT_VERSION,
        "inputs": inputs,
        "plan": asdict(simulation) | {"replaced": sorted(simulation.replaced)},
    }
    return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
