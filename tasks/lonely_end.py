"""Ends all ranks where one ends alone, by an error that nobody catches; imported first, it does so while others load.

Else that rank would wait for the others as MPI comes to its end, and they for its part in what they do together. Knows
no Prefect.
"""

import os
import signal
import sys
import time
from types import TracebackType

_HANDED_ON = 0.5
"""Seconds for a rank's last words to reach its launcher, which drops what it has not passed on by an abort."""


def abort(status: int) -> None:
    """End all ranks, once a launcher has had the time to hand on what this one has said."""
    from mpi4py import MPI

    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(_HANDED_ON)
    MPI.COMM_WORLD.Abort(status)


def end_all_ranks(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error as Python does, and end the job if there are other ranks."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        if MPI.COMM_WORLD.size > 1:
            abort(1)
        return
    from tasks.launchers import ranks_asked_for

    if ranks_asked_for(os.environ, 1) > 1:
        # MPI cannot be asked, and launchers let the others wait for a rank that ends by itself before it has joined.
        os.kill(os.getpid(), signal.SIGKILL)


sys.excepthook = end_all_ranks
