"""What the versions of the table ``samples`` say of themselves."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class ManifestVersion:
    """A version of the table ``samples``, and who made it; texts are empty where the commit does not say."""

    version: int
    committed_at: datetime
    """UTC."""
    operation: str
    """What Delta calls it: ``WRITE`` where rows were added; ``OPTIMIZE`` where only the files were rearranged."""
    run_id: str
    """Run that made the commit."""
    samples_added: int
    samples_removed: int = 0
    """A sample that was made anew counts as added and as removed."""
    action: str = ""
    """What it was for: ``generate``, ``refresh``, ``repair``, ``import``, ``compact``."""
    user: str = ""
    host: str = ""
    config_digest: str = ""
    """Of the configuration's content."""
    code_version: str = ""


def version_of(entry: dict[str, Any]) -> ManifestVersion:
    """Return the version that an entry of `storage.tables.table_history` is of; it may be another tool's."""
    metrics = entry.get("operationMetrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    added = metrics.get("num_added_rows") or metrics.get("num_target_rows_inserted") or 0
    removed = metrics.get("num_deleted_rows") or metrics.get("num_target_rows_deleted") or 0
    texts = ("run_id", "action", "user", "host", "config_digest", "code_version")
    return ManifestVersion(
        version=entry["version"],
        committed_at=datetime.fromtimestamp(entry["timestamp"] / 1000, UTC),
        operation=entry["operation"],
        samples_added=said_number(entry.get("samples_added", added)),
        samples_removed=said_number(entry.get("samples_removed", removed)),
        **{name: str(entry.get(name, "")) for name in texts},
    )


def said_number(said: object) -> int:
    """Return a number that a commit says of itself; 0 where it says something else."""
    text = str(said)
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0
