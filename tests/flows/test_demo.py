"""The demo, as `make demo` runs it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.prefect, pytest.mark.mpi]

PROGRAM = Path(sys.executable).with_name("bind-data")
_VARIABLES = ("BIND_NBODY_BASE", "BIND_HYDRO_BASE", "BIND_FOF_NBODY_BASE", "BIND_PARAM_FILE", "BIND_DATASET")


def call(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in _VARIABLES}
    environment |= {"PREFECT_HOME": str(folder / "prefect"), "PATH": f"{PROGRAM.parent}:{environment['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_everything_that_the_demo_names_is_there_and_works(tmp_path: Path) -> None:
    """The demo ends well; the files that it names exist, and the commands that it proposes succeed as printed."""
    done = call("bind-data demo 'a demo'", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    made, _, proposals = done.stdout.partition("What to try next")
    named = re.findall(r"^  (a demo/\S+?)(?:,|:)(?: (a demo/\S+?):)?", made, re.MULTILINE)
    paths = [tmp_path / path for group in named for path in group if path]
    assert len(paths) == 5
    assert all(path.exists() for path in paths), paths
    commands = [line.strip() for line in proposals.splitlines() if line.startswith("  bind-data ")]
    assert len(commands) == 6
    for command in commands:
        words = shlex.split(command, comments=True)
        if "generate" in words:  # those take a server each, and are run by other tests
            command = command.partition("#")[0] + " --dry-run"
        followed = call(command, tmp_path)
        assert followed.returncode == 0, command + followed.stdout + followed.stderr
    assert "SB35_4" in followed.stdout
