"""A whole platform on this machine: a Prefect server, the deployments, and a worker, as child processes of this one."""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

import psutil

from bind_core.errors import BindDataError

HEALTH_TIMEOUT = 180.0
"""Seconds that a server may take to answer; the first time, it makes its database."""

_PATIENCE = 20.0
"""Seconds that processes get to end by themselves, each time they are asked to."""
_POLL = 0.3
_LAST_LINES = 15
_PR_SET_CHILD_SUBREAPER = 36


class ServeError(BindDataError):
    """A platform that could not be started, or that lost one of its processes."""


@dataclass
class Platform:
    """Server and worker of one folder.

    Parameters
    ----------
    folder : Path
        Holds all that they keep: ``prefect/`` (the database and the results) and ``logs/``.
    host : str
        Address that the server listens on.
    port : int
        Its port.
    """

    folder: Path
    host: str
    port: int
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _resources: ExitStack = field(default_factory=ExitStack)

    @property
    def url(self) -> str:
        """Address of the UI."""
        return f"http://{self.host}:{self.port}"

    @property
    def settings(self) -> dict[str, str]:
        """Prefect's settings for whatever belongs to this platform, as variables of the environment."""
        return {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "DO_NOT_TRACK": "1",
        }

    @property
    def log_folder(self) -> Path:
        """Where the output of the processes goes."""
        return self.folder / "logs"

    def start_server(self) -> None:
        """Start the server and wait until it answers.

        Raises
        ------
        ServeError
            If another platform uses the folder, the port is taken, or the server does not come up.
        """
        try:
            self.log_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServeError(f"Cannot make the folder {self.folder}: {error.strerror or error}.") from error
        self._resources.enter_context(_sole_use(self.folder, self.url))
        _refuse_taken_port(self.host, self.port)
        _adopt_orphans()
        self._start("server", ["server", "start", "--host", self.host, "--port", str(self.port)])
        deadline = time.monotonic() + HEALTH_TIMEOUT
        while not _answers(f"{self.url}/api/health"):
            self.raise_for_ended()
            if time.monotonic() > deadline:
                raise ServeError(
                    f"The server has not answered for {HEALTH_TIMEOUT:.0f} s. {self._last_words('server')}"
                )
            time.sleep(_POLL)

    def start_worker(self, work_pool: str, limit: int) -> None:
        """Start a worker that executes at most `limit` runs at a time."""
        self._start(f"worker-{work_pool}", ["worker", "start", "--pool", work_pool, "--limit", str(limit)])

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        log = self._resources.enter_context((self.log_folder / f"{name}.log").open("ab"))
        self._children[name] = subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            env=os.environ | self.settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for this process, which ends the others in their order
        )

    def raise_for_ended(self) -> None:
        """Raise an error if a process has ended that should not.

        Raises
        ------
        ServeError
            With the last lines of its output.
        """
        for name, process in self._children.items():
            if process.poll() is not None:
                raise ServeError(f"The {name} has ended with status {process.returncode}. {self._last_words(name)}")

    def wait(self) -> None:
        """Wait for ever, or until a process ends that should not.

        Raises
        ------
        ServeError
            In the latter case.
        """
        while True:
            self.raise_for_ended()
            time.sleep(_POLL)

    def stop(self) -> None:
        """End everything: first the runs, which report to the server that they were ended, the worker, the server.

        What does not end in time is killed. Nothing that was started here, by runs or by their jobs is left.
        """
        with _undisturbed():
            server = self._children.pop("server", None)
            for worker in self._children.values():
                _end(_children_of(worker))
                _end(_alive(worker))
            self._children.clear()
            if server is not None:
                _end(_alive(server))
            left = psutil.Process().children(recursive=True)
            for process in left:
                _signal(process, signal.SIGKILL)
            psutil.wait_procs(left, timeout=_PATIENCE)
            self._resources.close()

    def _last_words(self, name: str) -> str:
        path = self.log_folder / f"{name}.log"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join([f"From {path}:", *(f"  {line}" for line in lines)])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal end this process before it has ended the others."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            signal.signal(number, handler)


@contextmanager
def _sole_use(folder: Path, url: str) -> Iterator[None]:
    """Hold a folder for this process, which the lock's file names."""
    with (folder / "serving").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ServeError(
                f"The folder {folder} is in use: {holder}. Stop that one, or give another folder."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} serves it at {url}\n")
        file.flush()
        yield
        file.truncate(0)


def _refuse_taken_port(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ServeError(
            f"Cannot listen on {host}, port {port}: {error.strerror or error}. If another server runs there, stop it, "
            f"or use it with `PREFECT_API_URL=http://{host}:{port}/api bind-data deploy`; or choose another --port."
        ) from None


def _adopt_orphans() -> None:
    """Become the parent of what children leave behind, so that it can be found and ended. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def _alive(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return [psutil.Process(process.pid)] if process.poll() is None else []


def _children_of(worker: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Return the processes of the runs that a worker executes."""
    return [child for process in _alive(worker) for child in process.children()]


def _end(processes: list[psutil.Process]) -> None:
    """End processes: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            _signal(process, number)
        _, processes = psutil.wait_procs(processes, timeout=_PATIENCE)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
