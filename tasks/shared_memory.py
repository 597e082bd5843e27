"""What the ranks of one node share: arrays, a counter, and each other's failures.

Knows no Prefect.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from bind_core.errors import BindDataError

Result = TypeVar("Result")


@contextmanager
def shared_array(node: MPI.Intracomm, shape: tuple[int, ...], dtype: type[np.generic]) -> Iterator[NDArray[Any]]:
    """Give all ranks of a node one array, in memory that exists once.

    Collective. The memory is released, collectively, at the end of the context: no rank may use the array then.

    Parameters
    ----------
    node : MPI.Intracomm
        Ranks that can share memory.
    shape : tuple of int
        Shape of the array.
    dtype : numpy scalar type
        Its type.

    Yields
    ------
    numpy.ndarray
        Zeroed by the system when first touched.
    """
    if node.size == 1:
        yield np.zeros(shape, dtype=dtype)
        return
    itemsize = np.dtype(dtype).itemsize
    size = int(np.prod(shape, dtype=np.int64)) * itemsize
    window = MPI.Win.Allocate_shared(size if node.rank == 0 else 0, itemsize, comm=node)
    buffer, _ = window.Shared_query(0)
    array = np.ndarray(shape, dtype=dtype, buffer=memoryview(buffer))  # type: ignore[arg-type]
    with _released_together(window.Free):
        yield array


@contextmanager
def dealt_out(node: MPI.Intracomm, count: int) -> Iterator[Iterator[int]]:
    """Deal the numbers 0 to count - 1 out to the ranks of a node, each number once, as they ask for more.

    Collective; the context ends on all ranks together.

    Yields
    ------
    iterator of int
        This rank's numbers.
    """
    if node.size == 1:
        yield iter(range(count))
        return
    # In shared memory, and not locked for each number: either would wait for rank 0, which is busy projecting.
    itemsize = np.dtype(np.int64).itemsize
    window = MPI.Win.Allocate_shared(itemsize if node.rank == 0 else 0, itemsize, comm=node)
    if node.rank == 0:
        np.ndarray(1, dtype=np.int64, buffer=memoryview(window.tomemory()))[0] = 0  # type: ignore[arg-type]
    window.Lock_all(MPI.MODE_NOCHECK)
    window.Sync()
    node.Barrier()
    window.Sync()

    def numbers() -> Iterator[int]:
        taken, one = np.empty(1, dtype=np.int64), np.ones(1, dtype=np.int64)
        while True:
            window.Fetch_and_op(one, taken, 0)
            window.Flush(0)
            if taken[0] >= count:
                return
            yield int(taken[0])

    def release() -> None:
        window.Unlock_all()
        window.Free()

    with _released_together(release):
        yield numbers()
        node.Barrier()


@contextmanager
def _released_together(release: Callable[[], None]) -> Iterator[None]:
    """Call a collective `release` at the end, unless this rank fails alone.

    Errors of ours are raised on all ranks together, by `together`. After any other, the other ranks are elsewhere and
    would never arrive: the error must reach the top and abort the job.
    """
    try:
        yield
    except BindDataError:
        release()
        raise
    release()


def together(comm: MPI.Intracomm, step: Callable[[], Result]) -> Result:
    """Do something on every rank that may fail on some, and fail on all if it does.

    An error of ours on one rank would leave the others waiting for it in the next collective call.

    Parameters
    ----------
    comm : MPI.Intracomm
        The ranks.
    step : callable
        Must not call anything collective.

    Returns
    -------
    object
        What `step` returned on this rank.

    Raises
    ------
    BindDataError
        The error of the lowest rank that had one, on every rank.
    """
    result: Result | None = None
    error: BindDataError | None = None
    try:
        result = step()
    except BindDataError as caught:
        error = caught
    errors = comm.allgather(error)
    for failure in errors:
        if failure is not None:
            raise failure
    return result  # type: ignore[return-value]
