"""The Prefect server that a command starts for its own flow where there is none, and ends as its last act.

Prefect would start one too, but as a process of the command's own group: Ctrl-C would end both at the same time, and
the flow could no longer report its end. This one is in a session of its own, so that a terminal's signals do not reach
it, and it notices when the command is gone, even if that was killed.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import httpx

from bind_core.errors import BindDataError

_STARTUP = 120.0
_PATIENCE = 30.0
_GRACE = 5.0


class ServerError(BindDataError):
    """A Prefect server that does not start or does not answer."""


def start_embedded_server() -> str:
    """Start a server, which ends with this process, and return the address of its API.

    Raises
    ------
    ServerError
        If it does not answer.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the server gets a copy
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.embedded_server", str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
            env={**os.environ, "PREFECT_UI_ENABLED": "0"},
        )
    atexit.register(_end, process)  # when Prefect's own threads have sent the last of their logs and events
    _await_answer(url, process)
    return url


def server_at(url: str) -> str:
    """Return the address of a server's API, if it answers.

    Raises
    ------
    ServerError
        If it does not.
    """
    try:
        httpx.get(f"{url}/health", timeout=_PATIENCE)  # whatever it says: it may ask for a key first
    except httpx.HTTPError as error:
        raise ServerError(
            f"PREFECT_API_URL is {url}, but no Prefect server answers there: {error}. Start it, with `bind-data serve` "
            "or `prefect server start`, or unset PREFECT_API_URL: then a server is started for the run."
        ) from error
    return url


def _await_answer(url: str, process: "subprocess.Popen[bytes]") -> None:
    try:  # whoever connects before it is ready is kept waiting
        httpx.get(f"{url}/health", timeout=_STARTUP, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE)  # it may have closed its door just now
        status = process.poll()
        state = "is still starting" if status is None else f"has ended with status {status}"
        raise ServerError(
            f"Starting an embedded Prefect server: it does not answer ({error}) and {state}; what it says is above. "
            f"It was given {_STARTUP:.0f} s, and it keeps its records in $PREFECT_HOME, ~/.prefect by default, which "
            "must be writable. With PREFECT_API_URL set, a server that is running already is used instead."
        ) from error


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a server, first politely."""
    process.terminate()
    try:
        process.wait(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _end_with_parent() -> None:
    """Wait for the end of standard input, which is that of whoever started this process, and end too."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(1)


def main() -> None:
    """Serve on a listening socket that was inherited, until told to end or left alone."""
    import uvicorn

    listener = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    application = "prefect.server.api.server:create_app"
    config = uvicorn.Config(application, factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
