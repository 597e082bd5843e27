"""Names for versions of a data set, such as "trained-2026-11".

A tag is a small JSON file of its own, so that it stays with the data set wherever that is moved, and two people who
tag at the same time do not meet.
"""

import json
import re
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bind_core.errors import BindDataError
from bind_core.records import RecordError, record_from_json
from storage.files import remove_stale_temporaries, write_bytes
from storage.layout import DatasetLayout
from storage.process_identity import user_name

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


class TagError(BindDataError):
    """A tag that cannot be given, read or deleted."""


@dataclass(frozen=True)
class Tag:
    """A name for a version, and what that version was when it got it."""

    name: str
    version: int
    """Of the table ``samples``."""
    simulations_version: int
    """Of the table ``simulations``."""
    committed_at: datetime
    """When the version was committed, UTC."""
    samples: int
    """How many it holds."""
    config_digests: tuple[str, ...]
    """Of the configurations that they were made with; usually one."""
    note: str
    tagged_at: datetime
    """UTC."""
    user: str
    host: str

    def as_dict(self) -> dict[str, Any]:
        """Return the tag as plain values, for JSON."""
        times = {name: getattr(self, name).isoformat() for name in ("committed_at", "tagged_at")}
        return asdict(self) | times | {"config_digests": list(self.config_digests)}


def read_tags(layout: DatasetLayout) -> list[Tag]:
    """Return all tags of a data set, in order of name.

    Raises
    ------
    TagError
        If a tag's file is not what `write_tag` writes.
    """
    folder = layout.tags_folder
    files = sorted(file for file in folder.glob("*.json") if not file.name.startswith(".")) if folder.is_dir() else []
    return sorted((_read(file) for file in files), key=lambda tag: tag.name)


def new_tag(name: str, note: str, **version: Any) -> Tag:
    """Return a tag that this user gives now; `version` fills the fields that describe the version.

    Raises
    ------
    TagError
        If the name is not one.
    """
    if _NAME.fullmatch(name) is None or name.isdigit() or _DAY.match(name):
        raise TagError(
            f"{name!r} cannot be a tag: expected up to 100 letters, digits, dots, underscores and dashes that begin "
            "with a letter, digit or underscore and are neither a number nor a date, which mean versions already; e.g. "
            "trained-2026-11."
        )
    now, host = datetime.now(UTC), socket.gethostname()
    return Tag(name=name, note=note, tagged_at=now, user=user_name(), host=host, **version)


def write_tag(layout: DatasetLayout, tag: Tag) -> Tag:
    """Record a tag.

    Returns
    -------
    Tag
        The recorded one: if the version has that name and note already, it stays as it is.

    Raises
    ------
    TagError
        If the name is taken by another version, or has another note.
    OSError
        If it cannot be written.
    """
    path = _file(layout, tag.name)
    remove_stale_temporaries(path.parent)
    content = json.dumps(tag.as_dict(), indent=2, ensure_ascii=False) + "\n"
    try:
        write_bytes(path, content.encode(), replace=False)
    except FileExistsError:
        existing = _read(path)
        if (existing.version, existing.note) != (tag.version, tag.note):
            raise TagError(
                f"The tag {tag.name} is taken: it means version {existing.version}, by {existing.user} at "
                f"{existing.tagged_at.isoformat(timespec='seconds')}{_noted(existing)}; asked for was version "
                f"{tag.version}{_noted(tag)}. Choose another name, or delete it with "
                f"`bind-data tag {tag.name} --delete`."
            ) from None
        return existing
    return tag


def delete_tag(layout: DatasetLayout, name: str) -> Tag:
    """Delete a tag and return what it was; the version that it named stays.

    Raises
    ------
    TagError
        If there is no such tag.
    """
    tags = {tag.name: tag for tag in read_tags(layout)}
    if name not in tags:
        raise TagError(
            f"There is no tag {name!r} to delete in {layout.root}: its tags are {', '.join(tags) or 'none'}."
        )
    _file(layout, name).unlink(missing_ok=True)
    return tags[name]


def _file(layout: DatasetLayout, name: str) -> Path:
    return layout.tags_folder / f"{name}.json"


def _noted(tag: Tag) -> str:
    return f" (note: {tag.note})" if tag.note else " (no note)"


def _read(path: Path) -> Tag:
    try:
        tag = record_from_json(Tag, path.read_bytes(), path)
    except (OSError, RecordError) as error:
        raise TagError(
            f"The tag {path} cannot be read: {error}. Restore it from a copy, or delete the file."
        ) from error
    if tag.committed_at.tzinfo is None or tag.tagged_at.tzinfo is None:
        raise TagError(f"The tag {path} has a time without its time zone. Restore it from a copy, or delete the file.")
    if tag.name != path.stem:
        raise TagError(f"The tag {path} says that its name is {tag.name!r}. Give the file that name, or delete it.")
    return tag
