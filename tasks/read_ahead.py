"""Reading the next particles in the background, while these are projected.

Knows no Prefect.
"""

from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from bind_core.config import DatasetConfig
from bind_core.memory_need import GIB
from tasks.node_memory import memory_bytes

Value = TypeVar("Value")


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
    return memory_bytes() >= config.read_ahead_memory * GIB
