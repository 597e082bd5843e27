"""The automations that are shipped as files, and their application to a server."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import AutomationCore
from pydantic import BaseModel, ValidationError

from bind_core.errors import BindDataError


class AutomationFileError(BindDataError):
    """An automation's file that cannot be used."""


class MissingBlockError(AutomationFileError):
    """An automation that would notify somebody, and nobody has said whom."""


def apply_automations(folder: Path, client: SyncPrefectClient) -> list[str]:
    """Create the automations in a folder's YAML files, or bring those of the same names up to date.

    Parameters
    ----------
    folder : Path
        Holds one automation per file; see `read_automation`.
    client : SyncPrefectClient
        Of the server.

    Returns
    -------
    list of str
        A line on each: what was done with it.

    Raises
    ------
    AutomationFileError
        If a file cannot be read as an automation; nothing is applied then.
    """
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise AutomationFileError(f"There are no automations in {folder}: expected *.yaml files.")
    blocks = _notification_blocks(client)
    lines, ready = [], []
    for path in paths:
        try:
            ready.append(read_automation(path, blocks))
        except MissingBlockError as error:
            lines.append(str(error))
    return [*(_apply(automation, client) for automation in ready), *lines]


def read_automation(path: Path, blocks: Mapping[str, str]) -> AutomationCore:
    """Read an automation from a file such as `prefect automation create --from-file` takes.

    Parameters
    ----------
    path : Path
        The file. Where it has a ``block_document_id``, that is the name of a notification block of any type.
    blocks : mapping
        Ids of the notification blocks that there are, by name.

    Raises
    ------
    MissingBlockError
        If it names a block that is not there.
    AutomationFileError
        If the file cannot be read, or holds anything else than an automation.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise AutomationFileError(f"Cannot read the automation in {path}: {error}") from error
    if not isinstance(values, dict):
        raise AutomationFileError(f"{path} holds no automation: expected name, trigger and actions.")
    for action in values.get("actions", ()):
        name = action.get("block_document_id")
        if name is not None and name not in blocks:
            raise MissingBlockError(
                f"{values.get('name')}: not applied, since there is no notification block called {name}. Create one of "
                "any type, in the UI under Blocks, and deploy again."
            )
        if name is not None:
            action["block_document_id"] = blocks[name]
    try:
        automation = AutomationCore.model_validate(values)
    except ValidationError as error:
        problems = [f"  {'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise AutomationFileError("\n".join([f"{path} cannot be used:", *problems])) from None
    parts: list[tuple[str, dict[str, Any], BaseModel]] = [
        ("automation", values, automation),
        ("trigger", values["trigger"], automation.trigger),
        *(("action", *pair) for pair in zip(values["actions"], automation.actions, strict=True)),
    ]
    for what, given, known in parts:
        if unknown := given.keys() - type(known).model_fields.keys():
            raise AutomationFileError(f"{path} cannot be used: the {what} has no {', '.join(sorted(unknown))}.")
    return automation


def _apply(automation: AutomationCore, client: SyncPrefectClient) -> str:
    existing = client.read_automations_by_name(automation.name)
    if not existing:
        client.create_automation(automation)
        return f"{automation.name}: created"
    if _content(existing[0]) == _content(automation):
        return f"{automation.name}: up to date"
    # An automation that is written anew forgets what it was waiting for.
    client.update_automation(existing[0].id, automation)
    return f"{automation.name}: updated"


def _content(automation: AutomationCore) -> dict[str, Any]:
    return automation.model_dump(include=set(AutomationCore.model_fields), exclude={"trigger": {"id"}})


def _notification_blocks(client: SyncPrefectClient) -> dict[str, str]:
    found: dict[str, Any] = {}
    for block in client.read_block_documents(include_secrets=False):
        if block.name and block.block_schema and "notify" in block.block_schema.capabilities:
            found[block.name] = str(block.id)
    return found
