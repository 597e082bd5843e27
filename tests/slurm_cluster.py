"""A real SLURM of one node, started for tests and ended after them, with everything it keeps in a folder of its own."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
CPUS = 4
_CONFIGURATION = """\
ClusterName=trial
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=5
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000
PartitionName=usual Nodes=ALL Default=YES DefMemPerCPU=800 MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=ALL PriorityTier=10 DefMemPerCPU=800 MaxTime=INFINITE State=UP
"""


def what_is_missing() -> str:
    """Return why no SLURM can be started here, or nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)}: install slurm-wlm and munge"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root"


class Cluster:
    """A running SLURM.

    Parameters
    ----------
    folder : Path
        For its state, with a short path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = socket.gethostname().split(".")[0]
        self.configuration = folder / "slurm.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("spool", "state"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        controller_port, node_port = _free_ports(2)
        self.configuration.write_text(
            _CONFIGURATION.format(
                host=self.host,
                folder=self.folder,
                controller_port=controller_port,
                node_port=node_port,
                cpus=CPUS,
                # MPICH names shared memory after the job, and a killed job of another test run may have left some.
                first_job=1 + secrets.randbelow(60_000_000),
            )
        )
        files = [
            *(f"--socket={self.folder}/munge.socket", f"--key-file={key}", f"--log-file={self.folder}/munged.log"),
            *(f"--pid-file={self.folder}/munged.pid", f"--seed-file={self.folder}/munge.seed"),
        ]
        self._run_daemon("munged", "--foreground", "--force", *files)
        wait_until((self.folder / "munge.socket").exists, "munged")
        self._run_daemon("slurmctld", "-D", "-c", "-f", str(self.configuration))
        self._run_daemon("slurmd", "-D", "-f", str(self.configuration))
        wait_until(lambda: self.said("sinfo", "--noheader", "--format=%T").split() == ["idle"], "an idle node", 30)

    def stop(self) -> None:
        self.said("scancel", "--user=root")
        wait_until(lambda: not self.running(), "the end of all jobs", 60)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(30)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def said(self, *command: str) -> str:
        """Return what a command of SLURM prints, whether it succeeds or not."""
        variables = os.environ | {"SLURM_CONF": str(self.configuration)}
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False).stdout

    def running(self, job: str = "") -> list[str]:
        """Return the jobs, or the tasks of one, that are in the queue and have not ended."""
        which = [f"--jobs={job}"] if job else []
        return self.said("squeue", "--noheader", "--format=%A", *which).split()

    def all_jobs(self) -> list[str]:
        """Return all jobs that SLURM remembers."""
        return self.said("squeue", "--noheader", "--states=all", "--format=%A").split()

    def fact(self, job: str, name: str) -> str:
        """Return what SLURM says of a job, such as its JobState."""
        words = self.said("scontrol", "--oneliner", "show", "job", job).split()
        return next((word.split("=", 1)[1] for word in words if word.startswith(f"{name}=")), "")

    def states(self, job: str) -> set[str]:
        """Return the states of a job, or of the tasks of an array."""
        return set(self.said("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").split())

    def _run_daemon(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("wb")
        with log:
            self._daemons.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 90) -> None:
    """Wait until something is so, without keeping a core busy."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
