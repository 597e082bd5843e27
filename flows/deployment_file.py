"""The file `prefect.yaml`, read strictly: Prefect itself passes over what it does not know."""

import inspect
import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from prefect import Flow
from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentEventTrigger
from prefect.flows import load_flow_from_entrypoint
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bind_core.errors import BindDataError

_VARIABLE = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")
"""A variable of the environment, as Prefect writes it."""


class DeploymentFileError(BindDataError):
    """A `prefect.yaml` that would not deploy what it says."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class WorkPoolChoice(_Strict):
    """Where the runs of a deployment are executed."""

    name: str = Field(min_length=1)
    work_queue_name: str | None = None
    job_variables: dict[str, Any] = {}


class ConcurrencyLimit(_Strict):
    """How many runs of a deployment there may be at a time, and what becomes of one too many."""

    limit: int = Field(ge=1)
    collision_strategy: ConcurrencyLimitStrategy
    grace_period_seconds: int | None = Field(None, ge=60, le=86400)


class Schedule(_Strict):
    """When a deployment runs by itself."""

    cron: str
    timezone: str
    active: bool
    slug: str
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _means_something(self) -> "Schedule":
        CronSchedule(cron=self.cron, timezone=self.timezone)
        return self


class Deployment(_Strict):
    """A flow that can be run from the UI."""

    name: str = Field(min_length=1)
    entrypoint: str
    description: str = Field(min_length=1)
    tags: list[str] = Field(min_length=1)
    enforce_parameter_schema: Annotated[bool, Field(strict=True)]
    parameters: dict[str, Any] = {}
    schedules: list[Schedule] = []
    triggers: list[dict[str, Any]] = []
    concurrency_limit: ConcurrencyLimit
    work_pool: WorkPoolChoice

    @property
    def runs_by_itself(self) -> bool:
        """Whether nobody may be there to fill in a form."""
        return bool(self.schedules or self.triggers)


class DeploymentFile(_Strict):
    """What can be run, and when."""

    name: str
    prefect_version: str = Field(alias="prefect-version")
    pull: list[dict[str, Any]]
    definitions: dict[str, Any] = {}
    deployments: list[Deployment] = Field(min_length=1)

    @property
    def work_pools(self) -> list[str]:
        """Names of the work pools that the deployments need."""
        return sorted({deployment.work_pool.name for deployment in self.deployments})


def read_deployment_file(path: Path) -> DeploymentFile:
    """Read a `prefect.yaml` and check it against the flows that it deploys.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    DeploymentFileError
        With everything found, one a line: keys that do not exist or are missing, flows that cannot be loaded,
        parameters that they do not have, or that a run by itself would lack, names that are there twice.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise DeploymentFileError(f"Cannot read the deployments in {path}: {error}") from error
    try:
        found = DeploymentFile.model_validate(values)
    except ValidationError as error:
        problems = [f"{_place(problem['loc'], values)}: {problem['msg']}" for problem in error.errors()]
        raise DeploymentFileError(_message(path, problems)) from None
    names = [deployment.name for deployment in found.deployments]
    problems = [f"{name}: there are several deployments of this name" for name in set(names) if names.count(name) > 1]
    for deployment in found.deployments:
        problems += [f"{deployment.name}: {problem}" for problem in _problems(deployment)]
    if problems:
        raise DeploymentFileError(_message(path, problems))
    return found


def _problems(deployment: Deployment) -> list[str]:
    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(deployment.entrypoint)
    except Exception as error:  # whatever importing a module may raise
        return [f"entrypoint {deployment.entrypoint}: {error}"]
    parameters = inspect.signature(flow.fn).parameters
    problems = []
    sources = {"parameters": deployment.parameters}
    sources |= {f"schedule {schedule.slug}": schedule.parameters for schedule in deployment.schedules}
    for number, values in enumerate(deployment.triggers, start=1):
        try:
            trigger = DeploymentEventTrigger.model_validate(values)
        except ValidationError as error:
            problems += [f"trigger {number}, {_place(p['loc'], values)}: {p['msg']}" for p in error.errors()]
        else:
            unknown = values.keys() - DeploymentEventTrigger.model_fields.keys()
            problems += [f"trigger {number}: there is no key {key}" for key in sorted(unknown)]
            sources[f"trigger {number}"] = trigger.parameters or {}
    for source, given in sources.items():
        unknown = given.keys() - parameters
        problems += [f"{source}: {flow.fn.__name__} has no parameter {name}" for name in sorted(unknown)]
    required = {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}
    if deployment.runs_by_itself and (lacking := required - deployment.parameters.keys()):
        problems.append(f"parameters: it runs by itself, and {', '.join(sorted(lacking))} must be given for that")
    return problems


def variables_in(text: str) -> set[str]:
    """Return the variables of the environment that a text names."""
    return set(_VARIABLE.findall(text))


def _place(location: tuple[int | str, ...], values: Any) -> str:
    """Return where a problem is, with deployments by their names instead of their numbers."""
    if len(location) > 1 and location[0] == "deployments":
        deployment = values["deployments"][location[1]]
        name = deployment.get("name", location[1]) if isinstance(deployment, dict) else location[1]
        location = (f"deployment {name}", *location[2:])
    return ".".join(map(str, location)) or "the file"


def _message(path: Path, problems: list[str]) -> str:
    return "\n".join([f"{path} would not deploy what it says:", *(f"  {problem}" for problem in problems)])
