"""Reading the next particles in the background, while these are projected.

Knows no Prefect.
"""

import os
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

from bind_core.config import DatasetConfig

Value = TypeVar("Value")

_GIB = 1 << 30
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

_SLURM_LIMIT = "SLURM_MEM_PER_NODE"
"""Variable with the memory of a SLURM job on each node, in MiB; its control group is not the one of these files."""


class ReadAhead(Generic[Value]):
    """Does one thing in the background, for whoever asks for it next.

    Parameters
    ----------
    enabled : bool
        If not, everything is done when it is asked for.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._executor = ThreadPoolExecutor(max_workers=1) if enabled else None
        self._begun: tuple[Hashable, Future[Value]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def start(self, key: Hashable, read: Callable[[], Value]) -> None:
        """Begin something that will be asked for by its key."""
        if self._executor is not None:
            self._drop()
            self._begun = (key, self._executor.submit(read))

    def take(self, key: Hashable, read: Callable[[], Value]) -> Value:
        """Return what was begun under a key, or do it now; an error is raised here in both cases."""
        if self._begun is not None and self._begun[0] == key:
            _, future = self._begun
            self._begun = None
            return future.result()
        self._drop()
        return read()

    def _drop(self) -> None:
        """Forget what was begun and not asked for, once it has ended: it holds memory."""
        if self._begun is not None:
            _, future = self._begun
            self._begun = None
            if not future.cancel():
                future.exception()


def reads_ahead(config: DatasetConfig) -> bool:
    """Return whether this machine has the memory that a configuration asks for before anything is read ahead."""
    return memory_bytes() >= config.read_ahead_memory * _GIB


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or what its control group or SLURM job allows."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for file in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            memory = min(memory, int(file.read_text()))
    of_job = os.environ.get(_SLURM_LIMIT, "")
    return min(memory, int(of_job) << 20) if of_job.isdecimal() and int(of_job) else memory
