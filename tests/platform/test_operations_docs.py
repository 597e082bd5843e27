"""What docs/operations.md says is there, is there."""

import re
from pathlib import Path

from typer.main import get_command

from flows.cli import app
from flows.deployment_file import read_deployment_file

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


def test_the_deployments_are_those_of_the_file() -> None:
    """The table lists every deployment, and the times are those of the schedules."""
    section = TEXT.partition("## Adding simulations")[0]
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| ([a-z ]+) \|", section, re.MULTILINE))
    deployments = {
        deployment.name: deployment for deployment in read_deployment_file(REPOSITORY / "prefect.yaml").deployments
    }
    assert set(listed) == set(deployments)
    times = {"every six hours": "0 */6 * * *", "every day": "30 4 * * *", "every week": "0 6 * * 0"}
    for name, deployment in deployments.items():
        assert [schedule.cron for schedule in deployment.schedules] == (
            [times[listed[name]]] if deployment.schedules else []
        )


def test_commands_and_their_options_exist() -> None:
    """Every `bind-data` command, each of its options and every `make` target is there."""
    named = re.findall(r"bind-data ([a-z]+)((?: [^`\n#]*)?)", TEXT)
    assert {"serve", "deploy", "plan", "repair"} <= {command for command, _ in named} <= set(COMMANDS)
    for command, rest in named:
        flags = {flag for parameter in COMMANDS[command].params for flag in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= flags, command
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", TEXT, re.MULTILINE)) <= targets


def test_artifacts_are_left_by_the_flows() -> None:
    """Every artifact in the table is one that a flow leaves, and there is none besides."""
    section = TEXT.partition("## Watching")[2].partition("From a terminal")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    listed = {key for row in rows for key in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    left = {
        key
        for path in (REPOSITORY / "flows").glob("*.py")
        for key in re.findall(r'\bkey="([a-z-]+)"', path.read_text(encoding="utf-8"))
    }
    assert listed == left


def test_messages_that_it_quotes_are_those_of_the_automations() -> None:
    """The words by which a silent run is known stand in the automation."""
    assert "No sign of life for 90 seconds" in TEXT
    assert "No sign of life for 90 seconds" in (REPOSITORY / "automations" / "silent-runs.yaml").read_text()
