"""Real runs of the flow in processes of their own, and who is left of them."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from batch_runs import environment

from bind_core.config import DatasetConfig, Stratum
from storage.mock_suite import MockSuite

MARK = "TEST_FAMILY"


def configuration(suite: MockSuite, root: Path, **settings: object) -> DatasetConfig:
    """Return the configuration of a run with a block per simulation, with small maps."""
    values: dict[str, object] = {
        "dmo_base": suite.dmo_base,
        "hydro_base": suite.hydro_base,
        "catalogue_base": suite.catalogue_base,
        "parameter_file": suite.parameter_file,
        "output_root": root,
        "resolution": 32,
        "strata": [Stratum(rotations=2)],
        "simulations_per_block": 1,
        "retry_delay": 0.1,
    }
    return DatasetConfig.from_values(values | settings)


class Family:
    """Processes that have inherited a mark in their environment, however far from the first."""

    def __init__(self) -> None:
        self.mark = {MARK: uuid.uuid4().hex}

    def environment(self, **variables: object) -> dict[str, str]:
        """Return the environment to start the first one with."""
        return environment(**variables) | self.mark

    def members(self) -> dict[int, str]:
        """Return the command lines of those that live, by process id."""
        wanted = f"{MARK}={self.mark[MARK]}".encode()
        return {pid: command for pid, command in _commands() if wanted in _environment_of(pid)}


def ranks_below(root: Path) -> dict[int, str]:
    """Return the command lines of MPI launchers and ranks that work on a data set, by process id."""
    return {pid: command for pid, command in _commands() if str(root) in command and "projection_job" in command}


def parent_of(pid: int) -> int:
    """Return the id of the process that started another one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_alive(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _commands() -> Iterable[tuple[int, str]]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if command:  # a process that has ended has none
            yield int(process.name), os.fsdecode(command.replace(b"\0", b" ")).strip()


def _environment_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
