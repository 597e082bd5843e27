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


class DaskSettings(BaseModel):
    """The Dask cluster of `runner: dask`: on this machine, unless an address or SLURM is given."""

    # A form calls a setting as the YAML file does, and not by a title made of its name.
    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    workers: int = Field(
        2, ge=1, le=4096, description="Workers of the cluster; as many blocks are worked on at the same time."
    )
    address: str | None = Field(
        None,
        pattern=r"^(tcp|tls|ws|wss)://[^/\s]+:\d+$",
        description="Scheduler of a cluster that is running already, such as tcp://node7:8786.",
    )
    slurm: bool = Field(
        False, description="Submit each worker as a SLURM job, which asks for what slurm_job says, for one block."
    )
    interface: str | None = Field(
        None,
        pattern=r"^[\w.:@-]+$",
        description="Network interface that workers of slurm are reached by, such as ib0; if empty, the host's own.",
    )

    @model_validator(mode="after")
    def _is_one_cluster(self) -> Self:
        if self.address is not None and self.slurm:
            raise ValueError("address and slurm exclude each other: a run has one cluster")
        return self
