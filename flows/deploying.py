"""From `prefect.yaml` and the files in `automations/` to deployments on a server."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

import flows
from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError
from flows.automations import apply_automations
from flows.deployment_file import DeploymentFile, read_deployment_file, variables_in
from flows.options import BASES
from storage.manifest import recorded_configuration

REPOSITORY = Path(flows.__file__).parents[1]
"""Where `prefect.yaml` and `automations/` lie."""

_TABLE_VARIABLE = "BIND_PARAM_FILE"
_DATASET_VARIABLE = "BIND_DATASET"
_ANSWER = 30.0
_LAST_LINES = 20


class DeployError(BindDataError):
    """Deployments that could not be registered with a server."""


@dataclass(frozen=True)
class Registered:
    """What is on the server after a deployment."""

    deployments: tuple[str, ...]
    """By name, as <flow>/<deployment>."""
    work_pools: tuple[str, ...]
    notes: tuple[str, ...]
    """A line on each thing that the operator should know."""


def deploy_all(dataset: Path, bases: Mapping[str, Path | None], repository: Path = REPOSITORY) -> Registered:
    """Register work pools, deployments and automations with the server at ``PREFECT_API_URL``; may be repeated.

    Parameters
    ----------
    dataset : Path
        Root of the data set that scheduled runs are about; it need not exist yet.
    bases : mapping
        Folders of the suite and the parameter table by their variables in the environment, for the form of
        `generate`. What is not given is taken from the data set's own configuration, if it has one, and left empty
        in the form otherwise.
    repository : Path
        Holds `prefect.yaml` and `automations/`.

    Raises
    ------
    DeploymentFileError, AutomationFileError
        If a file would not do what it says.
    DeployError
        If there is no server, or it refuses something.
    """
    file = repository / "prefect.yaml"
    wanted = read_deployment_file(file)
    config = recorded_configuration(dataset)
    variables = _variables(dataset, bases, config)
    with _server() as client:
        notes = [note for name in wanted.work_pools if (note := _ensure_work_pool(name, client))]
        _run_prefect_deploy(file, variables)
        names = _names_on_server(wanted, client)
        if config is None:
            notes += _pause_schedules(names, dataset, client)
        else:
            _fill_forms(names, config, client)
        notes += apply_automations(repository / "automations", client)
    return Registered(tuple(names), tuple(wanted.work_pools), tuple(notes))


def _variables(dataset: Path, given: Mapping[str, Path | None], config: DatasetConfig | None) -> dict[str, str]:
    """Return a value for each variable of the file: an empty one leaves an empty field in the form."""
    values = {_DATASET_VARIABLE: str(dataset.absolute())}
    settings = {variable: setting for setting, (_, variable) in BASES.items()} | {_TABLE_VARIABLE: "parameter_file"}
    for variable, setting in settings.items():
        path = given.get(variable) or (getattr(config, setting) if config is not None else None)
        values[variable] = "" if path is None else str(path.absolute())
    return values


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    url = get_current_settings().api.url
    if url is None:
        raise DeployError(
            "There is no server to deploy to: set PREFECT_API_URL to its address, such as "
            "http://127.0.0.1:4200/api. `bind-data serve` starts one and deploys to it."
        )
    try:
        httpx.get(f"{url}/health", timeout=_ANSWER)  # Prefect's client tries for a minute
    except httpx.HTTPError as error:
        message = f"No Prefect server answers at {url} ({error}). Start it, or correct PREFECT_API_URL."
        raise DeployError(message) from error
    with get_client(sync_client=True) as client:
        yield client


def _ensure_work_pool(name: str, client: SyncPrefectClient) -> str:
    """Create a work pool of type process if there is none of that name; say so if there is one of another type."""
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        client.create_work_pool(WorkPoolCreate(name=name, type=ProcessWorker.type, base_job_template=template))
        return f"Work pool {name}: created"
    if pool.is_paused:
        return f"Work pool {name} is paused: nothing will run until it is resumed (`prefect work-pool resume {name}`)"
    if pool.type != ProcessWorker.type:
        return f"Work pool {name} is there already, of type {pool.type}: start a worker of that type for it"
    return ""


def _run_prefect_deploy(file: Path, variables: dict[str, str]) -> None:
    unknown = variables_in(file.read_text(encoding="utf-8")) - variables.keys() - os.environ.keys()
    if unknown:
        raise DeployError(f"{file} names variables that are not set: {', '.join(sorted(unknown))}. Set them.")
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    done = subprocess.run(
        command,
        cwd=file.parent,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-_LAST_LINES:])
        raise DeployError(f"`prefect deploy` ended with status {done.returncode}:\n{last}")


def _names_on_server(wanted: DeploymentFile, client: SyncPrefectClient) -> list[str]:
    """Return the deployments by their full names, after looking whether all of them are there."""
    there = {deployment.name: deployment for deployment in client.read_deployments()}
    missing = [deployment.name for deployment in wanted.deployments if deployment.name not in there]
    if missing:
        raise DeployError(f"`prefect deploy` has ended well, and the server does not know {', '.join(missing)}.")
    flow_names = {name: client.read_flow(there[name].flow_id).name for name in there}
    return [f"{flow_names[deployment.name]}/{deployment.name}" for deployment in wanted.deployments]


def _fill_forms(names: list[str], config: DatasetConfig, client: SyncPrefectClient) -> None:
    """Start from the data set's own settings in every form that asks for some; what the file gives goes before."""
    for name in names:
        deployment = client.read_deployment_by_name(name)
        if "config" in deployment.parameters:
            settings = config.model_dump(mode="json") | deployment.parameters["config"]
            parameters = deployment.parameters | {"config": settings}
            client.update_deployment(deployment.id, DeploymentUpdate(parameters=parameters))


def _pause_schedules(names: list[str], dataset: Path, client: SyncPrefectClient) -> list[str]:
    """Turn schedules off, which would fail again and again as long as there is no data set."""
    paused = []
    for name in names:
        deployment = client.read_deployment_by_name(name)
        for schedule in deployment.schedules:
            client.update_deployment_schedule(deployment.id, schedule.id, active=False)
        if deployment.schedules:
            paused.append(deployment.name)
    return [
        f"Schedules of {', '.join(paused)} are off, since there is no data set in {dataset} yet. Run the deployment "
        "generate, and deploy again."
    ]
