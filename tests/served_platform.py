"""A platform of its own for the tests: server, worker and deployments, as `bind-data serve` starts them."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

PROGRAM = Path(sys.executable).with_name("bind-data")
FIRST = ("SB35_0", "SB35_2")
"""Simulations that are there from the beginning."""
LATER = "SB35_4"

_FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_PATIENCE = 240.0
QUICK = {
    # As fast as it goes, and nothing of whoever runs the tests.
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = _PATIENCE) -> Any:
    """Return what a condition gives as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.3)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    """Return an environment without anyone's settings of Prefect or of this project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "BIND_"))}
    return kept | QUICK | more


def copy_simulations(source: Path, suite: Path, names: Sequence[str]) -> None:
    """Copy simulations with their three folders, and the parameter table."""
    suite.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "CosmoAstroSeed_SB35.txt", suite)
    for role in ("DMO", "Hydro", "FOF"):
        for name in names:
            shutil.copytree(source / role / name, suite / role / name)
            for path in [suite / role / name, *(suite / role / name).rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)


@dataclass
class ServedPlatform:
    """A running platform, and ways to ask its server."""

    folder: Path
    suite: Path
    port: int
    process: "subprocess.Popen[str]"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    @property
    def output(self) -> str:
        return (self.folder.parent / "serve.out").read_text()

    @property
    def environment(self) -> dict[str, str]:
        """For commands that talk to this platform's server."""
        return environment(PREFECT_API_URL=f"{self.url}/api", PREFECT_HOME=str(self.folder.parent / "home"))

    def call(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Run a command that talks to this platform's server."""
        return subprocess.run(
            [str(PROGRAM), *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )

    def ask(self, method: str, path: str, **body: Any) -> Any:
        def answer() -> httpx.Response | None:
            """Ask, and ask again if the server is busy, as Prefect's own client does."""
            try:
                response = httpx.request(method, f"{self.url}/api{path}", json=body or None, timeout=60)
            except httpx.ReadTimeout:
                if method != "GET" and not path.endswith("/filter"):
                    raise  # it may have been done nevertheless
                return None
            return None if response.status_code == httpx.codes.SERVICE_UNAVAILABLE else response

        response = wait_for(answer, f"an answer to {method} {path}")
        response.raise_for_status()
        return response.json() if response.content else None

    def deployment(self, name: str) -> dict[str, Any]:
        (found,) = self.ask("POST", "/deployments/filter", deployments={"name": {"any_": [name]}})
        return dict(found)

    def start(self, name: str, **parameters: Any) -> str:
        """Run a deployment; `config` adds to its own configuration."""
        deployment = self.deployment(name)
        given = deployment["parameters"] | parameters
        if "config" in parameters:
            given["config"] = deployment["parameters"]["config"] | parameters["config"]
        run = self.ask("POST", f"/deployments/{deployment['id']}/create_flow_run", parameters=given)
        return str(run["id"])

    def flow_run(self, run_id: str) -> dict[str, Any]:
        return dict(self.ask("GET", f"/flow_runs/{run_id}"))

    def finished(self, run_id: str) -> dict[str, Any]:
        """Wait until a run has ended, and return it."""
        wait_for(lambda: self.flow_run(run_id)["state_type"] in _FINAL, f"the end of run {run_id}")
        return self.flow_run(run_id)

    def flow_runs(self, name: str) -> list[dict[str, Any]]:
        """Return the runs of a deployment, oldest first."""
        return list(
            self.ask("POST", "/flow_runs/filter", deployments={"name": {"any_": [name]}}, sort="START_TIME_ASC")
        )

    def task_runs(self, run_id: str) -> list[dict[str, Any]]:
        return list(self.ask("POST", "/task_runs/filter", flow_runs={"id": {"any_": [run_id]}}))

    def log_lines(self, run_id: str) -> list[str]:
        """Return what a run has logged so far; its last lines may arrive after its final state."""
        logs = {"flow_run_id": {"any_": [run_id]}}
        return [log["message"] for log in self.ask("POST", "/logs/filter", logs=logs, sort="TIMESTAMP_ASC")]

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        found = self.ask("POST", "/artifacts/filter", flow_runs={"id": {"any_": [run_id]}})
        return {artifact["key"]: artifact for artifact in found if artifact["key"]}

    def has_heartbeat(self, run_id: str) -> bool:
        """Whether a run has given a sign of life."""
        chosen = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{run_id}"]},
        }
        return bool(self.ask("POST", "/events/filter", filter=chosen)["events"])


def jobs_in(root: Path) -> list[psutil.Process]:
    """Return the MPI processes that work below a folder."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "tasks.projection_job" in (words := process.info["cmdline"] or []) and any(str(root) in w for w in words)
    ]


@contextmanager
def serving(folder: Path, suite: Path) -> Iterator[ServedPlatform]:
    """Start a platform in a folder, and end it."""
    port = free_port()
    bases = ("--dmo-base", suite / "DMO", "--hydro-base", suite / "Hydro", "--catalogue-base", suite / "FOF")
    command = [str(PROGRAM), "serve", str(folder), "--port", str(port), *map(str, bases)]
    with (folder.parent / "serve.out").open("w") as output:
        process = subprocess.Popen(
            command, env=environment(), stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
    platform = ServedPlatform(folder, suite, port, process)
    try:
        wait_for(lambda: "Ctrl-C ends" in platform.output or process.poll() is not None, "the platform")
        assert process.poll() is None, platform.output
        yield platform
    finally:
        if process.poll() is None:
            everything = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            process.send_signal(signal.SIGTERM)
            _, left = psutil.wait_procs(everything, timeout=60)
            for straggler in left:
                straggler.kill()
        process.wait(timeout=60)
