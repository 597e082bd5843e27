"""Digests of snapshots that were looked at, remembered so that the same file is not read again by every command.

A snapshot that was touched, or replaced by another of the same size, differs in nothing but its time of modification
until it is read. What reading it gave is kept beside the data set until a run records it in the manifest.
"""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bind_core.config import DatasetConfig
from bind_core.errors import BindDataError, SnapshotError
from bind_core.inputs import read_snapshot_digest
from bind_core.suite import Role
from storage.files import write_bytes
from storage.layout import DatasetLayout
from storage.provenance import InputFile

SETTLED_AFTER = timedelta(seconds=10)
"""Age from which a file's time of modification tells it from what it was before: some file systems count in seconds."""


class SnapshotDigests:
    """Digests of snapshot files, read where they are not remembered.

    Parameters
    ----------
    layout : DatasetLayout
        The data set, whose work folder keeps them. If that cannot be written to, nothing is remembered.
    config : DatasetConfig
        Its policies decide what of a file counts.
    """

    def __init__(self, layout: DatasetLayout, config: DatasetConfig) -> None:
        self.file = layout.work_folder / "snapshot_digests.json"
        self.config = config
        self._remembered: dict[str, dict[str, object]] | None = None

    def of(self, snapshot: InputFile) -> str | None:
        """Return the digest of a snapshot file, or None where it cannot be read.

        Parameters
        ----------
        snapshot : InputFile
            The file with the size and time of modification that it has now.
        """
        state: dict[str, object] = {
            "bytes": snapshot.bytes,
            "mtime": snapshot.mtime,
            "role": snapshot.role,
            "config_digest": self.config.digest,
        }
        known = self._known().get(snapshot.path, {})
        digest = known.get("digest")
        if isinstance(digest, str) and {**state, "digest": digest} == known:
            return digest
        try:
            digest = read_snapshot_digest(Path(snapshot.path), Role(snapshot.role), self.config)
        except SnapshotError:
            return None  # it is another file now, in any case
        if snapshot.mtime is not None and _settled(snapshot.mtime):
            self._remember(snapshot.path, {**state, "digest": digest})
        return digest

    def _known(self) -> dict[str, dict[str, object]]:
        if self._remembered is None:
            self._remembered = _read(self.file)
        return self._remembered

    def _remember(self, path: str, state: dict[str, object]) -> None:
        self._remembered = {**_read(self.file), path: state}  # another command may have added to it meanwhile
        with suppress(OSError, BindDataError):
            write_bytes(self.file, json.dumps(self._remembered, indent=1).encode())


def _settled(mtime: str) -> bool:
    return datetime.now(UTC) - datetime.fromisoformat(mtime) > SETTLED_AFTER


def _read(file: Path) -> dict[str, dict[str, object]]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {path: state for path, state in values.items() if isinstance(state, dict)}
