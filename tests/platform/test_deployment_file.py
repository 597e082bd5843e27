"""`prefect.yaml` and the automations: what is shipped is sound, and mistakes are found before a server sees them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.automations import AutomationFileError, MissingBlockError, read_automation
from flows.deployment_file import DeploymentFileError, read_deployment_file

REPOSITORY = Path(__file__).parents[2]
AUTOMATIONS = sorted((REPOSITORY / "automations").glob("*.yaml"))
A_BLOCK = {"bind-data-notify": "00000000-0000-4000-8000-000000000000"}


def test_the_shipped_file_is_sound() -> None:
    """It deploys six flows, each explained and tagged, with its parameters enforced, a limit and a work pool."""
    found = read_deployment_file(REPOSITORY / "prefect.yaml")
    names = {deployment.name for deployment in found.deployments}
    assert names == {"generate", "new-simulations", "audit-known", "audit-verified", "normalize", "pack"}
    assert all(deployment.enforce_parameter_schema for deployment in found.deployments)
    assert all("bind-data" in deployment.tags for deployment in found.deployments)
    assert found.work_pools == ["bind-data"]
    scheduled = {deployment.name for deployment in found.deployments if deployment.schedules}
    assert scheduled == {"new-simulations", "audit-known", "audit-verified"}
    follow_ups = {deployment.name: deployment.triggers for deployment in found.deployments if deployment.triggers}
    assert {name: trigger.get("enabled", True) for name, (trigger,) in follow_ups.items()} == {
        "normalize": True,
        "pack": False,
    }


def of(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def find(values: dict[str, Any]) -> dict[str, Any]:
        return next(deployment for deployment in values["deployments"] if deployment["name"] == name)

    return find


MISTAKES = {
    "an unknown key at the top": (lambda v: v.update(deployment=[]), ["deployment: Extra inputs"]),
    "a misspelt key of a deployment": (
        lambda v: of("generate")(v).update(concurency_limit=1),
        ["deployment generate.concurency_limit: Extra inputs"],
    ),
    "a misspelt key of a schedule": (
        lambda v: of("audit-known")(v)["schedules"][0].update(timezon="UTC"),
        ["deployment audit-known.schedules.0.timezon"],
    ),
    "no work pool": (lambda v: of("normalize")(v).pop("work_pool"), ["deployment normalize.work_pool: Field required"]),
    "a work pool without a name": (
        lambda v: of("normalize")(v).update(work_pool={"job_variables": {}}),
        ["deployment normalize.work_pool.name: Field required"],
    ),
    "a parameter that the flow does not have": (
        lambda v: of("audit-known")(v)["parameters"].update(depht="known"),
        ["audit-known: parameters: audit_dataset has no parameter depht"],
    ),
    "a trigger that gives one": (
        lambda v: of("normalize")(v)["triggers"][0].update(parameters={"root": "x"}),
        ["normalize: trigger 1: normalize_dataset has no parameter root"],
    ),
    "a schedule that gives one": (
        lambda v: of("audit-known")(v)["schedules"][0].update(parameters={"root": "x"}),
        ["audit-known: schedule daily: audit_dataset has no parameter root"],
    ),
    "a misspelt key of a trigger": (
        lambda v: of("normalize")(v)["triggers"][0].update(expects=["x"]),
        ["normalize: trigger 1: there is no key expects"],
    ),
    "a scheduled run without its data set": (
        lambda v: of("new-simulations")(v).update(parameters={}),
        ["new-simulations: parameters: it runs by itself, and dataset must be given"],
    ),
    "a flow that is not there": (
        lambda v: of("generate")(v).update(entrypoint="flows.generate.make"),
        ["generate: entrypoint flows.generate.make"],
    ),
    "a time that never comes": (
        lambda v: of("audit-known")(v)["schedules"][0].update(cron="90 4 * * *"),
        ["deployment audit-known.schedules.0", "90 4"],
    ),
    "two of one name": (
        lambda v: of("audit-known")(v).update(name="audit-verified"),
        ["audit-verified: there are several deployments of this name"],
    ),
    "an unknown collision strategy": (
        lambda v: of("generate")(v)["concurrency_limit"].update(collision_strategy="WAIT"),
        ["deployment generate.concurrency_limit.collision_strategy", "ENQUEUE"],
    ),
    "no help": (lambda v: of("generate")(v).update(description=""), ["deployment generate.description"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str, tmp_path: Path) -> None:
    """What Prefect would pass over is refused, with the deployment and the key."""
    spoil, expected = MISTAKES[mistake]
    values = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())
    spoil(values)
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(DeploymentFileError) as caught:
        read_deployment_file(path)
    assert str(path) in str(caught.value)
    for part in expected:
        assert part in str(caught.value)


def test_a_file_that_is_not_there_or_no_yaml_is_named(tmp_path: Path) -> None:
    """The message names the file."""
    path = tmp_path / "prefect.yaml"
    with pytest.raises(DeploymentFileError, match=str(path)):
        read_deployment_file(path)
    path.write_text("a: [")
    with pytest.raises(DeploymentFileError, match=str(path)):
        read_deployment_file(path)
    path.write_text("just words")
    with pytest.raises(DeploymentFileError, match="would not deploy"):
        read_deployment_file(path)


def test_the_shipped_automations_are_sound() -> None:
    """They are read as Prefect reads them, and two of them notify."""
    found = {path.stem: read_automation(path, A_BLOCK) for path in AUTOMATIONS}
    assert set(found) == {"silent-runs", "failed-runs", "failed-blocks"}
    assert len({automation.name for automation in found.values()}) == 3
    assert {automation.actions[0].type for automation in found.values()} == {
        "change-flow-run-state",
        "send-notification",
    }


def test_an_automation_that_notifies_nobody_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    """A missing block, an unknown key and a trigger that cannot be are different errors, each with its cause."""
    with pytest.raises(MissingBlockError, match="no notification block called bind-data-notify"):
        read_automation(REPOSITORY / "automations" / "failed-runs.yaml", {})
    path = tmp_path / "one.yaml"
    shutil.copyfile(REPOSITORY / "automations" / "silent-runs.yaml", path)
    sound = path.read_text()
    for wrong, message in {
        sound + "whenever: true\n": "the automation has no whenever",
        sound.replace("within: 90", "withinn: 90"): "the trigger has no withinn",
        sound.replace("state: CRASHED", "state: CRASHED\n    mesage: x"): "the action has no mesage",
    }.items():
        path.write_text(wrong)
        with pytest.raises(AutomationFileError, match=message):
            read_automation(path, {})
    path.write_text("name: x\ntrigger: {type: event, posture: Never}\nactions: []\n")
    with pytest.raises(AutomationFileError, match="posture"):
        read_automation(path, {})
