"""What a block's job asks of SLURM, as settings."""

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

_OPTION = re.compile(r"--(?P<name>[a-z][a-z0-9-]*)(=\S.*)?")
_SHIFTS = {"K": 10, "M": 20, "G": 30, "T": 40}
# What a launcher decides itself, or what would keep it from finding its job or waiting for it.
_RESERVED = {
    *("account", "cpus-per-task", "mem", "nodes", "ntasks", "partition", "time"),
    *("array", "chdir", "comment", "error", "export", "input", "job-name", "no-requeue", "open-mode", "output"),
    *("parsable", "requeue", "wait", "wrap"),
}


class SlurmJobSettings(BaseModel):
    """The SLURM job of a block, as `launcher: sbatch` submits it.

    What is empty is left to the cluster's defaults and to sbatch's own variables, such as SBATCH_ACCOUNT. None of it
    is shell code: a job inherits the environment that it is submitted from, modules and all.
    """

    # A form calls a setting as the YAML file does, and not by a title made of its name.
    model_config = ConfigDict(frozen=True, extra="forbid", field_title_generator=lambda name, _: name)

    partition: str | None = Field(None, pattern=r"^[\w.,+-]+$", description="Partition, or several with commas.")
    account: str | None = Field(None, pattern=r"^[\w.+-]+$", description="Account to charge.")
    time_limit: str | None = Field(
        None,
        pattern=r"^(\d+|\d+:\d{2}|\d+:\d{2}:\d{2}|\d+-\d{1,2}(:\d{2}){0,2})$",
        description="Longest time that a job may take: minutes, hours:minutes:seconds or days-hours.",
    )
    memory: str | None = Field(
        None, pattern=r"^\d+[KMGT]?$", description="Memory per node, such as 32G; 0 for all that a node has."
    )
    nodes: int = Field(1, ge=1, le=4096, description="Nodes that the ranks of a job are spread over.")
    cpus_per_rank: int = Field(1, ge=1, le=1024, description="Cores per MPI rank.")
    options: tuple[str, ...] = Field(
        (), description="Further options of sbatch, such as --constraint=icelake or --exclusive; one an entry."
    )
    poll_interval: float = Field(10.0, ge=0.1, le=3600, description="Seconds between questions about a job's state.")

    @property
    def memory_bytes(self) -> int | None:
        """What `memory` is in bytes; None where that is not said, or is all that a node has."""
        if self.memory is None:
            return None
        number, unit = int(self.memory.rstrip("KMGT")), self.memory[-1]
        return number << _SHIFTS.get(unit, _SHIFTS["M"]) if number else None

    @field_validator("options")
    @classmethod
    def _options_are_plain(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            match = _OPTION.fullmatch(option)
            if match is None or not option.isprintable():
                raise ValueError(f"{option!r} is no option of sbatch as expected: --name or --name=value, on one line")
            if match["name"] in _RESERVED:
                raise ValueError(
                    f"--{match['name']} cannot be given here: a setting of its own, or the launcher, has it"
                )
        return options
