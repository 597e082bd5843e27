"""MPI under SLURM: which interface `srun` must offer to which MPI library, and jobs in the allocation at hand.

``python -m tasks.slurm`` prints the flag for scripts. Knows no Prefect.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache

from bind_core.errors import BindDataError
from tasks.launchers import (
    JobFailedError,
    JobMemoryError,
    JobRefusedError,
    LauncherMissingError,
    Listener,
    MpiJob,
    run_attached,
    without_mpi_variables,
)

_ASK_TIMEOUT = 120.0
_INTERFACES = {
    "Open MPI": "pmix",
    "CRAY MPICH": "cray_shasta",
    "MPICH": "pmi2",
    "Intel(R) MPI": "pmi2",
    "MVAPICH": "pmi2",
}
"""What SLURM calls the interface by which the ranks of a library find each other, by what is in its version."""

_ASK_LIBRARY = """
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.Get_library_version())
"""
_REFUSALS = re.compile(
    r"srun: error: (.*(more processors requested|node configuration is not available|invalid mpi type|"
    r"memory required by task is not available|requested .* not available).*)",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(r"oom.kill|out.of.memory|exceeded (job )?memory limit", re.IGNORECASE)


class SrunLauncher:
    """Starts jobs as steps of the allocation that this process was started in."""

    attached = True

    def run(self, job: MpiJob, listener: Listener) -> None:
        """Start a job and wait for its end; see `Launcher.run`."""
        if "SLURM_JOB_ID" not in os.environ:
            raise LauncherMissingError(
                "launcher: srun starts jobs in the SLURM allocation of the run, and this process is in none: "
                "SLURM_JOB_ID is not set. Start the run inside sbatch or salloc, or choose launcher: sbatch, which "
                "submits jobs from outside, or mpiexec."
            )
        command = ["srun", f"--ntasks={job.ranks}", "--exact", "--kill-on-bad-exit=1", *mpi_flags(), *job.program]
        try:
            run_attached(command, listener)
        except JobFailedError as error:
            if ran_out_of_memory(str(error)):
                raise JobMemoryError(
                    f"{error}\nThey needed more memory than their allocation has, and would again. Ask for more, or "
                    "set ranks to fewer: they share the particles, but not their buffers."
                ) from error
            refused = _REFUSALS.search(str(error))
            if refused is None:
                raise
            raise JobRefusedError(
                f"The allocation {os.environ['SLURM_JOB_ID']} cannot run {job.ranks} MPI ranks (ranks): "
                f"{refused[1].strip()}. Ask for a larger one, or set ranks to fewer."
            ) from error


def ran_out_of_memory(said: str) -> bool:
    """Whether SLURM says among a job's last words that the memory did not suffice."""
    return _OUT_OF_MEMORY.search(said) is not None


def mpi_flags() -> list[str]:
    """Return the flag that tells `srun` which interface the MPI library in use needs.

    Nothing, if the variable SLURM_MPI_TYPE says it already.

    Raises
    ------
    LauncherMissingError
        If the library is not known, cannot be asked, or SLURM does not offer its interface.
    """
    if os.environ.get("SLURM_MPI_TYPE"):
        return []
    if shutil.which("srun") is None:
        raise LauncherMissingError(
            "There is no srun on the search path. Run this where SLURM is, or load its module, or choose launcher: "
            "mpiexec."
        )
    library = mpi_library()
    interface = interface_of(library)
    offered = _offered_interfaces()
    if interface not in offered:
        raise LauncherMissingError(
            f"The MPI library of this environment ({library}) needs srun --mpi={interface}, and SLURM offers here: "
            f"{', '.join(sorted(offered)) or 'nothing'}. Use an MPI library that SLURM supports, or set "
            "SLURM_MPI_TYPE if another of them works, or choose launcher: mpiexec."
        )
    return [f"--mpi={interface}"]


@cache
def mpi_library() -> str:
    """Return how the MPI library that mpi4py uses calls itself, in one line.

    Another process asks it, so that none is loaded into this one.

    Raises
    ------
    LauncherMissingError
        If mpi4py cannot be imported, or finds no library.
    """
    asked = _output_of([sys.executable, "-c", _ASK_LIBRARY])
    if asked.returncode != 0:
        raise LauncherMissingError(
            f"mpi4py cannot load its MPI library: {asked.stderr.strip()[-300:]}. Load the module of the MPI that it "
            "was built with, or install one with `pip install mpich`."
        )
    return " ".join(asked.stdout.strip().split("\n")[0].split())


def interface_of(library: str) -> str:
    """Return what SLURM calls the interface that an MPI library needs.

    Parameters
    ----------
    library : str
        How the library calls itself, as `mpi_library` returns it.

    Raises
    ------
    LauncherMissingError
        If it is not one of those known here.
    """
    for name, interface in _INTERFACES.items():
        if name.lower() in library.lower():
            return interface
    raise LauncherMissingError(
        f"It is not known which interface of SLURM the MPI library {library!r} needs; known are "
        f"{', '.join(_INTERFACES)}. Set SLURM_MPI_TYPE to it (`srun --mpi=list` shows those offered)."
    )


def outside_of_jobs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for commands that are about other jobs than the one that this process may be part of."""
    kept = {"SLURM_CONF", "SLURM_MPI_TYPE", "SLURM_CLUSTERS", "SLURM_JWT"}
    return {
        name: value
        for name, value in without_mpi_variables(environment).items()
        if name in kept or not name.startswith(("SLURM_", "SLURMD_", "SRUN_"))
    }


def _offered_interfaces() -> set[str]:
    asked = _output_of(["srun", "--mpi=list"])
    said = asked.stdout + asked.stderr
    if asked.returncode != 0:
        raise LauncherMissingError(f"srun does not work here, so no job can be started: {said.strip()[-300:]}")
    return set(re.findall(r"^\s+(\w+)\s*$", said, re.MULTILINE))


def ask(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    """Run a command that is about other jobs than the one that this process may be part of.

    Raises
    ------
    OSError
        If it cannot be started.
    subprocess.TimeoutExpired
        If it has not ended in time.
    """
    return subprocess.run(
        command,
        env=outside_of_jobs(os.environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _output_of(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return ask(command, _ASK_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LauncherMissingError(f"Cannot run {command[0]}: {error}.") from error


def main() -> int:
    """Print the flag for `srun`, or say why there is none; return the exit status."""
    try:
        print(*mpi_flags())
    except BindDataError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
