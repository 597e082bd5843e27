"""What a process of the fault tests needs, imported once by the server that all of them are forked from.

Nothing here may start a thread or MPI: both belong to the process that was forked.
"""

import mpi4py

mpi4py.rc.initialize = False

import fault_runs  # noqa: E402, F401
import polars.io  # noqa: E402, F401
import zarr  # noqa: E402, F401

import add_large_scale  # noqa: E402, F401
import flows.cli  # noqa: E402, F401
import process_simulations  # noqa: E402, F401
import storage.audit  # noqa: E402
import storage.conditions  # noqa: E402
import storage.importing  # noqa: E402
import storage.repair  # noqa: E402
import storage.schemas  # noqa: E402
import storage.shards  # noqa: E402
import storage.statistics  # noqa: E402, F401
import tasks.batch  # noqa: E402, F401
