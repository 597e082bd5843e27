"""Processes that hold the right to write to a data set, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from storage.layout import DatasetLayout

REPOSITORY = Path(__file__).parents[1]
PATIENCE = 120.0
"""Seconds until what does not happen has failed."""
BEAT = 0.1
"""Seconds between the signs of life of the owners of these tests."""

_HOLDER = """
import sys
from pathlib import Path
from storage.layout import DatasetLayout
from storage.lease import writing

root, beat, *names = sys.argv[1:]
layout = DatasetLayout(Path(root), "SB35")
with writing(layout, "bind-data generate", "run-1", names or None, beat_interval=float(beat)):
    print("has it", flush=True)
    sys.stdin.read()
print("gave it back", flush=True)
"""


def started(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python program that may import the project."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def an_owner(layout: DatasetLayout, *simulations: str) -> Iterator[subprocess.Popen[str]]:
    """Have another process that holds the right to write, until it is told to end or is killed."""
    process = started(_HOLDER, layout.root, BEAT, *simulations)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def eventually(happened: Callable[[], bool], what: str) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"{what} has not happened in {PATIENCE:.0f} s"
        time.sleep(0.02)


def state_of(process: subprocess.Popen[str]) -> str:
    """Return the letter by which the system calls a process's state."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def stop(process: subprocess.Popen[str]) -> None:
    """Stop a process, and wait until it is."""
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: state_of(process) == "T", "the stop")


def latest_entry(layout: DatasetLayout) -> Path:
    """Return the file that says who holds what."""
    return max(layout.lease_folder.glob("*.json"))


def claims(layout: DatasetLayout) -> list[dict[str, Any]]:
    """Return who holds what, as it is written down."""
    return list(json.loads(latest_entry(layout).read_text())["claims"])


def moved_to_another_machine(layout: DatasetLayout) -> None:
    """Let all owners have their claims from another machine, of whose processes nothing is known here."""
    entry = latest_entry(layout)
    content = json.loads(entry.read_text())
    for claim in content["claims"]:
        claim["owner"] |= {"boot": "another", "host": "node17"}
    entry.write_text(json.dumps(content))
