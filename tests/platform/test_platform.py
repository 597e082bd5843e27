"""Deployments on a real server with a real worker, as an operator uses them."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from platform_fixtures import SMALL
from served_platform import (
    FIRST,
    LATER,
    PROGRAM,
    ServedPlatform,
    copy_simulations,
    environment,
    free_port,
    jobs_in,
    serving,
    wait_for,
)

from storage.manifest import Manifest, layout_at

pytestmark = [pytest.mark.prefect, pytest.mark.mpi, pytest.mark.camels_mini]

HALOES = {"SB35_0": 40, "SB35_2": 41, "SB35_4": 44}


@pytest.fixture(scope="module")
def silenced_run(platform: ServedPlatform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Start a long run that no worker watches, kill it without warning, and return its id."""
    root = tmp_path_factory.mktemp("silenced")
    bases = ("--dmo-base", platform.suite / "DMO", "--hydro-base", platform.suite / "Hydro")
    command = [PROGRAM, "generate", "-d", root, *bases, "--catalogue-base", platform.suite / "FOF", "--rotations", 500]
    process = subprocess.Popen(
        list(map(str, command)), env=platform.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        (run,) = wait_for(
            lambda: [run for run in platform.ask("POST", "/flow_runs/filter") if str(root) in json.dumps(run)],
            "the run",
        )
        wait_for(lambda: jobs_in(root), "its MPI job")
        wait_for(lambda: platform.has_heartbeat(run["id"]), "its first heartbeat")
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not jobs_in(root), "the end of its MPI job")
    return str(run["id"])


@dataclass
class Chat:
    """A chat service that failures are told to."""

    deployed: str
    """What `bind-data deploy` said once it was known."""
    received: list[str] = field(default_factory=list)

    def message_on(self, subject: str) -> str:
        """Wait for a message whose first line begins with a subject, and return it."""
        found = lambda: [text for text in self.received if text.startswith(subject)]  # noqa: E731
        return str(wait_for(found, f"a message on {subject}")[0])


@pytest.fixture(scope="module")
def chat(platform: ServedPlatform, first_run: dict[str, Any]) -> Iterator[Chat]:
    """Start a chat service, and make it known as notification block."""
    received: list[str] = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Keep quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _create_notification_block(platform, f"http://127.0.0.1:{server.server_port}")
        done = platform.call("deploy", "-d", platform.dataset)
        assert done.returncode == 0, done.stderr
        yield Chat(done.stdout, received)
        server.shutdown()


def test_everything_is_deployed_at_the_start(platform: ServedPlatform, silenced_run: str) -> None:
    """Each deployment has its work pool, limit and help on the server; without a data set, schedules are off."""
    found = {deployment["name"]: deployment for deployment in platform.ask("POST", "/deployments/filter")}
    assert set(found) == {"generate", "new-simulations", "audit-known", "audit-verified", "normalize", "pack"}
    for deployment in found.values():
        assert deployment["work_pool_name"] == "bind-data"
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["enforce_parameter_schema"]
        assert deployment["description"].strip()
        assert "bind-data" in deployment["tags"]
        assert not any(schedule["active"] for schedule in deployment["schedules"])
    assert "Schedules of new-simulations, audit-known, audit-verified are off" in platform.output
    assert found["generate"]["parameters"]["config"]["dmo_base"] == str(platform.suite / "DMO")
    assert found["audit-known"]["parameters"]["dataset"] == str(platform.dataset)
    (automation,) = (a for a in platform.ask("POST", "/automations/filter") if "sign of life" in a["name"])
    assert automation["enabled"]


def test_the_form_has_help_ranges_and_choices(platform: ServedPlatform) -> None:
    """The schema that the form is made from comes from the configuration's model and the flow's docstring."""
    schema = platform.deployment("generate")["parameter_openapi_schema"]
    definitions = schema["definitions"]
    config = definitions["DatasetConfig"]["properties"]
    assert schema["properties"]["refresh"]["description"].startswith("Make samples anew")
    assert config["resolution"]["minimum"] == 2
    assert config["resolution"]["maximum"] == 8192
    assert definitions["StarPolicy"]["enum"] == ["all", "no_wind"]
    assert definitions["Stratum"]["properties"]["rotations"]["description"] == "Random orientations per halo."


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"config": {"resolution": "many"}}, "many"),
        ({"config": {"stars": "some"}}, "some"),
        ({"config": {"ranks": 0}}, "0 is less than the minimum of 1"),
        ({"config": {"resolutoin": 64}}, "resolutoin"),
        ({"refresh": "perhaps"}, "perhaps"),
    ],
)
def test_a_wrong_form_is_refused_before_a_run_exists(
    platform: ServedPlatform, parameters: dict[str, Any], named: str
) -> None:
    """A value out of range, a choice that there is none of, an unknown name: the server says which."""
    with pytest.raises(httpx.HTTPStatusError) as caught:
        platform.start("generate", **parameters)
    assert 400 <= caught.value.response.status_code < 500
    assert named in caught.value.response.text


def test_generate_makes_the_data_set(platform: ServedPlatform, first_run: dict[str, Any]) -> None:
    """A run from the form ends well and says what it made; the manifest has every sample."""
    assert first_run["state_type"] == "COMPLETED"
    assert first_run["state"]["message"].startswith("made 81 samples; 81 of 81 planned samples exist in")
    rows = Manifest(layout_at(platform.dataset)).samples()
    assert {name: rows.filter(simulation=name).height for name in FIRST} == {name: HALOES[name] for name in FIRST}
    assert all((platform.dataset / path).is_file() for path in rows["path"])


def test_a_run_reads_like_the_work(platform: ServedPlatform, first_run: dict[str, Any]) -> None:
    """There is a task run per step and block, by telling names, and the artifacts tell of progress and outcome."""
    steps = ("validate block", "select targets of block", "project block", "package block", "record block")
    expected = {f"{step} {block}" for step in steps for block in range(2)}
    names = wait_for(
        lambda: found if expected <= (found := {t["name"] for t in platform.task_runs(first_run["id"])}) else None,
        "the task runs",
    )
    assert names - expected == {"plan", "take stock"}
    artifacts = platform.artifacts(first_run["id"])
    assert artifacts["generation-progress"]["data"] == 100.0
    table = {row["simulation"]: row["made"] for row in json.loads(artifacts["generation-summary"]["data"])}
    assert table == {name: HALOES[name] for name in FIRST}
    assert artifacts["generation-summary"]["description"] == first_run["state"]["message"]
    assert "](data:image/jpeg;base64," in artifacts["contact-sheet"]["data"]


def test_normalization_follows_new_samples(platform: ServedPlatform, first_run: dict[str, Any]) -> None:
    """The event that samples were made starts the deployment normalize for that data set, without anyone's doing."""
    runs = wait_for(lambda: platform.flow_runs("normalize"), "the follow-up run")
    run = platform.finished(runs[0]["id"])
    assert run["parameters"]["dataset"] == str(platform.dataset)
    assert run["state_type"] == "COMPLETED", run["state"]
    assert run["state"]["message"].startswith("Statistics of 81 samples")
    assert len(list((platform.dataset / "data").glob("*_normalization_stats.npz"))) == 3


@pytest.fixture(scope="module")
def deployed_again(platform: ServedPlatform, first_run: dict[str, Any]) -> str:
    """Deploy once more, now that there is a data set, and return what the command said."""
    done = platform.call("deploy", "-d", platform.dataset)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_deploying_again_changes_nothing_but_turns_schedules_on(platform: ServedPlatform, deployed_again: str) -> None:
    """There is one of everything as before, from the data set's own configuration, and the schedules are active."""
    assert "bind-data: runs without a sign of life: up to date" in deployed_again
    assert "are off" not in deployed_again
    found = platform.ask("POST", "/deployments/filter")
    assert len(found) == 6
    assert {d["name"]: [s["active"] for s in d["schedules"]] for d in found if d["schedules"]} == {
        "new-simulations": [True],
        "audit-known": [True],
        "audit-verified": [True],
    }
    form = platform.deployment("generate")["parameters"]["config"]
    assert form["dmo_base"] == str(platform.suite / "DMO")
    assert {name: form[name] for name in ("resolution", "test_fraction")} == {"resolution": 16, "test_fraction": 0.0}
    names = [automation["name"] for automation in platform.ask("POST", "/automations/filter")]
    assert len(names) == len(set(names))


def test_a_work_pool_that_is_there_is_left_as_it_is(platform: ServedPlatform, deployed_again: str) -> None:
    """An operator's pause stays, and whoever deploys is told that nothing will run."""
    platform.ask("PATCH", "/work_pools/bind-data", is_paused=True)
    try:
        done = platform.call("deploy", "-d", platform.dataset)
        assert "Work pool bind-data is paused: nothing will run until it is resumed" in done.stdout
        assert platform.ask("GET", "/work_pools/bind-data")["is_paused"]
    finally:
        platform.ask("PATCH", "/work_pools/bind-data", is_paused=False)
    assert "Work pool" not in deployed_again


def test_a_schedule_makes_just_what_has_arrived(
    platform: ServedPlatform, deployed_again: str, camels_mini: Path
) -> None:
    """The schedule's next run, brought forward, makes a simulation that was added since and touches no other file."""
    copy_simulations(camels_mini, platform.suite, [LATER])
    before = {path: path.stat().st_mtime_ns for path in platform.dataset.rglob("*.npz") if "halo" in path.name}
    scheduled = wait_for(lambda: _scheduled(platform, "new-simulations"), "the scheduler")
    now = {"type": "SCHEDULED", "state_details": {"scheduled_time": datetime.now(UTC).isoformat()}}
    platform.ask("POST", f"/flow_runs/{scheduled['id']}/set_state", state=now, force=True)
    run = platform.finished(scheduled["id"])
    assert run["auto_scheduled"]
    assert run["state_type"] == "COMPLETED", run["state"]
    assert run["state"]["message"].startswith("made 44 samples; 44 of 44 planned samples exist")
    rows = Manifest(layout_at(platform.dataset)).samples()
    assert {name: rows.filter(simulation=name).height for name in HALOES} == HALOES
    assert {path: path.stat().st_mtime_ns for path in before} == before
    table = json.loads(platform.artifacts(run["id"])["new-simulations"]["data"])
    assert [(row["simulation"], row["why"]) for row in table] == [(LATER, "new")]
    again = platform.finished(platform.start("new-simulations"))
    assert again["state"]["message"] == "None of 3 simulations is new"


def test_a_failure_is_told_at_once_and_not_repeated(platform: ServedPlatform, chat: Chat, camels_mini: Path) -> None:
    """A blocked simulation fails its run with the cause, which reaches the chat; the next run leaves it alone."""
    assert "bind-data: runs that failed: created" in chat.deployed
    assert "bind-data: blocks that failed: created" in chat.deployed
    added = "SB35_6"
    for role in ("DMO", "FOF"):
        shutil.copytree(camels_mini / role / "SB35_2", platform.suite / role / added)
    run = platform.finished(platform.start("new-simulations"))
    assert run["state_type"] == "FAILED"
    assert f"{added} is blocked" in run["state"]["message"]
    assert str(platform.suite / "Hydro" / added) in run["state"]["message"]
    errors = {"flow_run_id": {"any_": [run["id"]]}, "level": {"ge_": 40}}
    wait_for(
        lambda: any(
            f"{added} is blocked" in log["message"] for log in platform.ask("POST", "/logs/filter", logs=errors)
        ),
        "the cause in the log",
    )
    message = chat.message_on(f"{run['name']}: Failed")
    assert f"{added} is blocked" in message
    assert f"/flow-run/{run['id']}" in message
    again = platform.finished(platform.start("new-simulations"))
    assert again["state_type"] == "COMPLETED"
    assert f"1 still blocked: {added}" in again["state"]["message"]


def test_a_failed_block_is_told_by_its_name(platform: ServedPlatform, chat: Chat) -> None:
    """A block whose ranks died, with no repeats left, is told with the cause and a link to its run."""
    root = platform.folder / "failed"
    config = SMALL | {"output_root": str(root), "strata": [{"rotations": 500}], "retries": 0}
    run = platform.start("generate", config=config, simulations=["SB35_0"])
    for rank in wait_for(lambda: [p for p in jobs_in(root) if "mpiexec" not in p.name()], "the MPI job"):
        rank.kill()
    assert platform.finished(run)["state_type"] == "FAILED"
    message = chat.message_on("project block 0: Failed")
    assert "JobFailedError" in message
    assert f"/flow-run/{run}" in message


def test_the_audit_leaves_verdict_checks_and_report(platform: ServedPlatform, first_run: dict[str, Any]) -> None:
    """A run of audit-known ends with a verdict, a table of checks and a link to the report."""
    run = platform.finished(platform.start("audit-known"))
    artifacts = platform.artifacts(run["id"])
    assert set(artifacts) == {"audit-checks", "audit-verdict", "audit-report"}
    report = platform.dataset / "audit" / "report.html"
    assert report.as_uri() in artifacts["audit-report"]["data"]
    assert report.is_file()
    assert run["state"]["message"] in artifacts["audit-verdict"]["data"]


def test_a_run_whose_process_was_killed_can_be_run_again(platform: ServedPlatform, first_run: dict[str, Any]) -> None:
    """The worker reports a run's killed process; its ranks end, and a second run makes the data set."""
    root = platform.folder / "killed"
    many = SMALL | {"output_root": str(root), "strata": [{"rotations": 500}]}
    run = platform.start("generate", config=many, simulations=["SB35_0"])
    wait_for(lambda: jobs_in(root), "the MPI job")
    for process in psutil.Process(platform.process.pid).children(recursive=True):
        if process.cmdline()[-2:] == ["-m", "prefect.engine"]:
            process.kill()
    ended = platform.finished(run)
    assert ended["state_type"] == "CRASHED"
    wait_for(lambda: not jobs_in(root), "the end of its MPI job")
    few = many | {"strata": SMALL["strata"]}
    assert (
        platform.finished(platform.start("generate", config=few, simulations=["SB35_0"]))["state_type"] == "COMPLETED"
    )


def test_a_second_platform_is_refused_in_words(platform: ServedPlatform, tmp_path: Path) -> None:
    """The same folder, and the same port, are taken: the message says by whom and what to do."""
    folder = _refused("serve", platform.folder, "--port", free_port())
    assert f"process {platform.process.pid} serves it at {platform.url}" in folder
    assert "give another folder" in folder
    port = _refused("serve", tmp_path / "other", "--port", platform.port)
    assert f"Cannot listen on 127.0.0.1, port {platform.port}" in port
    assert "--port" in port


def test_deploying_without_a_server_says_so(tmp_path: Path) -> None:
    """Neither an address, nor a server behind it: each is an error with what to do."""
    assert "set PREFECT_API_URL" in _refused("deploy", "-d", tmp_path, PREFECT_HOME=str(tmp_path))
    address = f"http://127.0.0.1:{free_port()}/api"
    message = _refused("deploy", "-d", tmp_path, PREFECT_HOME=str(tmp_path), PREFECT_API_URL=address)
    assert f"No Prefect server answers at {address}" in message


def test_one_signal_ends_everything(camels_mini: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a run ends its ranks, worker and server; a restart remembers; no worker, no platform."""
    copy_simulations(camels_mini, tmp_path / "suite", ["SB35_0"])
    with serving(tmp_path / "served", tmp_path / "suite") as served:
        many = SMALL | {"strata": [{"rotations": 500}]}
        run = served.start("generate", config=many)
        wait_for(lambda: jobs_in(served.dataset), "the MPI job")
        processes = psutil.Process(served.process.pid).children(recursive=True)
        assert len(processes) >= 5  # server, worker, flow, mpiexec and ranks
        os.killpg(served.process.pid, signal.SIGINT)
        assert served.process.wait(timeout=120) == 0
        assert not [process for process in processes if process.is_running()]
        assert "Stopped." in served.output
    with serving(tmp_path / "served", tmp_path / "suite") as served:
        assert served.flow_run(run)["state_type"] == "CRASHED"
        (worker,) = (p for p in psutil.Process(served.process.pid).children() if "worker" in p.cmdline())
        worker.kill()
        assert served.process.wait(timeout=120) == 1
        assert "ServeError: The worker-bind-data has ended with status -9" in served.output


def test_a_silent_run_is_declared_dead(platform: ServedPlatform, silenced_run: str) -> None:
    """A run that was killed with nobody watching stays Running until it has missed three heartbeats."""
    run = platform.finished(silenced_run)
    assert run["state_type"] == "CRASHED"
    assert run["state"]["message"].startswith("No sign of life for 90 seconds")


def _refused(*arguments: object, **variables: str) -> str:
    done = subprocess.run(
        [str(PROGRAM), *map(str, arguments)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def _create_notification_block(platform: ServedPlatform, address: str) -> None:
    program = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block\n"
        f"block = Block(name='chat', url={address!r}, json_data={{'text': '{{{{subject}}}} {{{{body}}}}'}})\n"
        "block.save('bind-data-notify', overwrite=True)\n"
    )
    subprocess.run([sys.executable, "-c", program], env=platform.environment, check=True, timeout=120)


def _scheduled(platform: ServedPlatform, name: str) -> dict[str, Any] | None:
    runs = platform.ask(
        "POST",
        "/flow_runs/filter",
        deployments={"name": {"any_": [name]}},
        flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
        sort="EXPECTED_START_TIME_ASC",
    )
    return next((run for run in runs if run["auto_scheduled"]), None)
