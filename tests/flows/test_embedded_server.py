"""The Prefect server of a command: one of its own, or the one that is given."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from batch_runs import REPOSITORY, wait_for
from command_line import PROGRAM
from flow_runs import Family, configuration

from storage.mock_suite import MockSuite, write_mock_suite

pytestmark = pytest.mark.prefect

_SERVE = """
import sys, httpx
from flows.embedded_server import start_embedded_server
url = start_embedded_server()
print(httpx.get(url + "/admin/version").json(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> MockSuite:
    return write_mock_suite(tmp_path_factory.mktemp("suite"), simulations=1, particles_per_side=8)


@pytest.mark.parametrize("end", ["its own", signal.SIGKILL])
def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path, end: object) -> None:
    """An embedded server answers at once when it is offered, and is gone soon after its process, however that ends."""
    family = Family()
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        env=family.environment(PREFECT_HOME=tmp_path),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        assert process.stdout.readline().startswith("3.")
        assert len(family.members()) == 2
        if end is signal.SIGKILL:
            process.kill()
    process.wait(60)
    wait_for(lambda: not family.members(), "the end of the server")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, ("http://127.0.0.1:9/api", "unset PREFECT_API_URL")),
        ({"PREFECT_API_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////proc/none.db"}, ("ended with status", "above")),
    ],
)
def test_a_server_that_cannot_be_used_is_one_message(
    suite: MockSuite, tmp_path: Path, variables: dict[str, str], said: tuple[str, ...]
) -> None:
    """A server that does not answer, or does not start, is the command's last word, with what to do."""
    file = tmp_path / "config.yaml"
    file.write_text(configuration(suite, tmp_path / "dataset").to_yaml())
    finished = subprocess.run(
        [str(PROGRAM), "generate", "--config", str(file)],
        env=Family().environment(PREFECT_HOME=tmp_path / "home", COLUMNS=200, **variables),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert finished.returncode == 1
    last_words = finished.stderr[finished.stderr.rindex("ServerError: ") :]
    assert all(words in last_words for words in said)
    assert "Traceback" not in last_words
