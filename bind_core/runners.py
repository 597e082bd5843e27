"""Where the blocks of a run are worked on, as settings.

They stand apart from `bind_core.config`, which has a page of its own for what is in a data set.
"""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class RunnerName(StrEnum):
    """Who starts the MPI jobs of a run's blocks."""

    THREADS = "threads"
    """The flow's own process, on its machine."""
    DASK = "dask"
    """The workers of a Dask cluster, on their machines."""


# A form calls a setting as the YAML file does, and not by a title made of its name.
_MODEL = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)


class SlurmWorkers(BaseModel):
    """The SLURM jobs that a run submits: one worker of Dask each, with one core per MPI rank."""

    model_config = _MODEL

    partition: str | None = Field(None, min_length=1, description="Partition; if empty, the cluster's default.")
    account: str | None = Field(None, min_length=1, description="Account to charge; if empty, yours.")
    walltime: str = Field(
        "12:00:00",
        pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$",
        description="Longest time that a job may take, [days-]hours:minutes:seconds.",
    )
    memory: str = Field(
        "32GiB", pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$", description="Memory of a job, such as 32GiB: that of one block."
    )
    directives: tuple[str, ...] = Field(
        (), description="Further options of sbatch, such as --constraint=icelake; one an entry."
    )
    prologue: tuple[str, ...] = Field(
        (), description="Shell commands that a job begins with, such as module load openmpi; one an entry."
    )
    interface: str | None = Field(
        None, min_length=1, description="Network interface that the nodes reach each other by, such as ib0."
    )


class DaskSettings(BaseModel):
    """The Dask cluster of `runner: dask`: on this machine, unless an address or SLURM is given."""

    model_config = _MODEL

    workers: int = Field(
        2, ge=1, le=4096, description="Workers of the cluster; as many blocks are worked on at the same time."
    )
    address: str | None = Field(
        None,
        pattern=r"^(tcp|tls|ws|wss)://[^/\s]+:\d+$",
        description="Scheduler of a cluster that is running already, such as tcp://node7:8786.",
    )
    slurm: SlurmWorkers | None = Field(None, description="Submit the workers as SLURM jobs.")

    @model_validator(mode="after")
    def _is_one_cluster(self) -> Self:
        if self.address is not None and self.slurm is not None:
            raise ValueError("address and slurm exclude each other: a run has one cluster")
        return self
