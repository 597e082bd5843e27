"""Versions of a data set: by number, by time, or by the tag that somebody gave to one.

The version of a data set is that of its table ``samples``; a version of the table ``simulations`` belongs to it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bind_core.errors import BindDataError
from storage.commits import ManifestVersion, said_number
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.tables import BEFORE_THE_FIRST, table_history
from storage.tags import Tag, new_tag, read_tags, write_tag

# ISO 8601, down to whichever unit is given.
_TIME = re.compile(
    r"(?P<days>\d{4}-\d{2}-\d{2})"
    r"([T ](?P<hours>\d{2})(:(?P<minutes>\d{2})(:(?P<seconds>\d{2})(?P<exact>\.\d+)?)?)?"
    r" ?(?P<zone>Z|UTC|[+-]\d{2}(:?\d{2})?)?)?"
)
_REARRANGING = ("OPTIMIZE", "VACUUM")
"""Operations of Delta that change no row."""
_SHOWN_TAGS = 10


class VersionError(BindDataError):
    """A version that there is not."""


@dataclass(frozen=True)
class DatasetVersion:
    """A version of a data set: which versions of the two tables belong together."""

    number: int
    """Of the table ``samples``; `BEFORE_THE_FIRST` where it has none, and only simulations were recorded."""
    simulations_number: int
    """Of the table ``simulations``; `BEFORE_THE_FIRST` where it had none."""
    committed_at: datetime | None
    """When the samples were committed, UTC; None where there are none."""
    tags: tuple[str, ...] = ()
    """Names given to this version, in order."""

    @property
    def title(self) -> str:
        """The version in words: number, tags and time."""
        if self.committed_at is None:
            return "The state before the first sample"
        names = f" ({', '.join(self.tags)})" if self.tags else ""
        return f"Version {self.number}{names} of {self.committed_at:%Y-%m-%d %H:%M:%S} UTC"

    def as_dict(self) -> dict[str, Any]:
        """Return the version as plain values, for JSON."""
        return {
            "version": self.number,
            "simulations_version": self.simulations_number,
            "committed_at": None if self.committed_at is None else self.committed_at.isoformat(),
            "tags": list(self.tags),
        }


def resolve_version(
    layout: DatasetLayout, version: str | int | None = None, at: datetime | None = None
) -> DatasetVersion:
    """Return the version that is meant.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    version : str or int, optional
        A number or a tag. A tag also fixes the simulations as they were recorded when it was given.
    at : datetime, optional
        Take the newest version that was committed at this time or before, and the simulations as recorded then;
        UTC if it has no zone.

    Returns
    -------
    DatasetVersion
        The latest version, if neither is given.

    Raises
    ------
    VersionError
        If both are given, there is no such version or tag, or nothing was committed by then.
    ManifestError
        If a table cannot be read.
    TagError
        If a tag cannot be read.
    """
    if version is not None and at is not None:
        raise VersionError(f"A version is meant by its name or by a time, but got both: {version} and {at}.")
    tags = read_tags(layout)
    versions = Manifest(layout).versions
    if at is not None:
        return _at(layout, versions, tags, at if at.tzinfo is not None else at.replace(tzinfo=UTC))
    if version is None:
        number = versions[-1].version if versions else BEFORE_THE_FIRST
        return _described(layout, versions, tags, number)
    text = str(version)
    tag = next((tag for tag in tags if tag.name == text), None)
    if tag is not None:
        return _tagged(layout, versions, tags, tag)
    number = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else BEFORE_THE_FIRST
    if not any(known.version == number for known in versions):
        raise VersionError(f"The data set {layout.root} has no version {text!r}; {_existing(versions, tags)}")
    return _described(layout, versions, tags, number)


def version_named(layout: DatasetLayout, text: str) -> DatasetVersion:
    """Return the version that a text means, be it a number, a tag or a time.

    Raises
    ------
    VersionError
        If it means none.
    ManifestError
        If a table cannot be read.
    TagError
        If a tag cannot be read.
    """
    if is_time(text):
        return resolve_version(layout, at=time_meant(text))
    return resolve_version(layout, text)


def tag_version(layout: DatasetLayout, name: str, version: str | int | None = None, note: str = "") -> Tag:
    """Give a version of a data set a name.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    name : str
        Letters, digits, dots, underscores and dashes.
    version : str or int, optional
        A number, or another tag of the version; the latest version by default.
    note : str
        What the name stands for.

    Returns
    -------
    Tag
        As recorded; if the version has that name and note already, it stays as it is.

    Raises
    ------
    VersionError
        If there is no such version.
    TagError
        If the name is no name for a tag, or is taken by another version or note.
    ManifestError
        If a table cannot be read.
    """
    meant = resolve_version(layout, version)
    if meant.committed_at is None:
        raise VersionError(f"There is no version to name in {layout.root}: no sample was committed yet.")
    digests = Manifest(layout).samples(meant.number)["config_digest"]
    tag = new_tag(
        name,
        note,
        version=meant.number,
        simulations_version=meant.simulations_number,
        committed_at=meant.committed_at,
        samples=digests.len(),
        config_digests=tuple(digests.unique().sort()),
    )
    return write_tag(layout, tag)


def is_time(text: str) -> bool:
    """Whether a text has the form of a time, as `time_meant` takes it."""
    return _TIME.fullmatch(text.strip()) is not None


def time_meant(text: str) -> datetime:
    """Return the last instant of the day, hour, minute or second that a text names.

    So a time that was read off a table of versions, cut to seconds, means the version in that line, and a day
    means what there was at its end.

    Parameters
    ----------
    text : str
        ISO 8601: a day, or a day and a time, with or without a zone; UTC if without.

    Raises
    ------
    VersionError
        If it is none.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise VersionError(
            f"{text!r} is not a time: expected ISO 8601, e.g. 2026-11-23 (its end, UTC), 2026-11-23T18:30 or "
            "2026-11-23T18:30:00+01:00."
        )
    unit = "exact"
    for finer in ("days", "hours", "minutes", "seconds"):
        if found["exact"] is None and found[finer] is not None:
            unit = finer
    zone = (found["zone"] or "Z").replace("UTC", "Z")
    clock = f"{found['hours'] or '00'}:{found['minutes'] or '00'}:{found['seconds'] or '00'}{found['exact'] or ''}"
    try:
        start = datetime.fromisoformat(f"{found['days']}T{clock}{zone}").astimezone(UTC)
        return start if unit == "exact" else start + timedelta(**{unit: 1}) - timedelta(microseconds=1)
    except (ValueError, OverflowError) as error:
        raise VersionError(f"There is no such time as {text!r}: {error}.") from error


def _at(
    layout: DatasetLayout, versions: Sequence[ManifestVersion], tags: Sequence[Tag], at: datetime
) -> DatasetVersion:
    number = max((known.version for known in versions if known.committed_at <= at), default=BEFORE_THE_FIRST)
    simulations = _simulations_at(layout, versions, number, at)
    if number == simulations == BEFORE_THE_FIRST:
        raise VersionError(
            f"Nothing was committed to the data set {layout.root} by {at.isoformat()}; {_existing(versions, tags)}"
        )
    return _described(layout, versions, tags, number, simulations)


def _tagged(
    layout: DatasetLayout, versions: Sequence[ManifestVersion], tags: Sequence[Tag], tag: Tag
) -> DatasetVersion:
    meant = next((known for known in versions if known.version == tag.version), None)
    if meant is None or meant.committed_at != tag.committed_at:
        found = "has no such version" if meant is None else f"has one of {meant.committed_at.isoformat()} instead"
        raise VersionError(
            f"The tag {tag.name} of {layout.root} means version {tag.version}, committed at "
            f"{tag.committed_at.isoformat()}, but the manifest {found}: it is not the one that was tagged. Restore "
            f"that one, or delete the tag with `bind-data tag {tag.name} --delete`."
        )
    return _described(layout, versions, tags, tag.version, tag.simulations_version)


def _described(
    layout: DatasetLayout,
    versions: Sequence[ManifestVersion],
    tags: Sequence[Tag],
    number: int,
    simulations_number: int | None = None,
) -> DatasetVersion:
    if simulations_number is None:
        simulations_number = _simulations_at(layout, versions, number, None)
    committed_at = next((known.committed_at for known in versions if known.version == number), None)
    names = tuple(tag.name for tag in tags if tag.version == number)
    return DatasetVersion(number, simulations_number, committed_at, names)


def _simulations_at(
    layout: DatasetLayout, versions: Sequence[ManifestVersion], number: int, until: datetime | None
) -> int:
    """Return the latest version of the simulations that speaks of no later samples, nor was committed later."""
    latest = belongs_to = BEFORE_THE_FIRST
    for entry in table_history(layout.simulations_table):
        belongs_to = max(belongs_to, _samples_version(entry, versions))
        if belongs_to > number or (until is not None and _time_of(entry) > until):
            break
        latest = entry["version"]
    return latest


def _samples_version(entry: dict[str, Any], versions: Sequence[ManifestVersion]) -> int:
    if "samples_version" in entry:
        said = str(entry["samples_version"])
        return BEFORE_THE_FIRST if said == str(BEFORE_THE_FIRST) else said_number(said)
    if entry["operation"].startswith(_REARRANGING):
        return BEFORE_THE_FIRST
    # A commit of another tool, or of before the number was recorded, belongs to the samples that there were then.
    earlier = [known.version for known in versions if known.committed_at <= _time_of(entry)]
    return max(earlier, default=BEFORE_THE_FIRST)


def _time_of(entry: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(entry["timestamp"] / 1000, UTC)


def _existing(versions: Sequence[ManifestVersion], tags: Sequence[Tag]) -> str:
    if not versions:
        return "it has none yet: no sample was committed."
    first, last = versions[0], versions[-1]
    names = ", ".join(tag.name for tag in tags[:_SHOWN_TAGS]) + (", …" if len(tags) > _SHOWN_TAGS else "")
    return (
        f"its versions are {first.version} ({first.committed_at.isoformat(timespec='seconds')}) to {last.version} "
        f"({last.committed_at.isoformat(timespec='seconds')}), and its tags: {names or 'none'}. `bind-data versions` "
        "lists them."
    )
