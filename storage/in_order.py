"""Work shared out to threads, whose results come back in the order of what was asked."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """Do something with each item in threads, and yield what comes of it, in the items' order.

    The threads go on while the caller is busy with a result. If it stops early, or one item raises, what was not begun
    is not done.

    Parameters
    ----------
    work : callable
        Called in a thread.
    items : iterable
        What it is called with.
    threads : int
        How many, at least one.
    ahead : int
        Items that are asked for before the result of the first is taken; bounds what waits in memory.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, threads))
    asked: deque[Future[Result]] = deque()
    try:
        for item in items:
            asked.append(pool.submit(work, item))
            if len(asked) > ahead:
                yield asked.popleft().result()
        while asked:
            yield asked.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
