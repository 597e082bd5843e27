"""What a worker of a Dask cluster does as it starts; Dask calls it a preload."""

import signal

from distributed import Worker

import tasks.projection  # noqa: F401  (loaded now, while the flow still looks at the inputs, and not with the first block)


def dask_setup(worker: Worker) -> None:
    """Leave Ctrl-C to the flow, which has the same terminal and ends its workers in order."""
    signal.signal(signal.SIGINT, lambda *_: None)  # SIG_IGN would be inherited by the MPI job
