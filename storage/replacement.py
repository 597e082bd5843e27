"""Samples that take the place of others: from the folder where they wait to the place of those that they replace.

A sample made anew is written beside the data set, into `DatasetLayout.staging_folder`. Then its row is committed, and
only then does its file take the old one's place, which is kept under its digest: so a killed run leaves the old samples
with the old rows, or the new rows and a journal by which the next run finishes. Earlier versions of the manifest find
the files that they speak of by digest.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from bind_core.errors import BindDataError
from bind_core.records import RecordError, record_from_json
from bind_core.splits import Split
from storage.faults import Step, passing
from storage.files import flush_folder, held, is_held, make_folder, sha256_of, write_bytes
from storage.layout import DatasetLayout, LayoutError

_JOURNALS = "*.json"
_LOCK = "lock"

Committed = Callable[[Sequence[str]], dict[str, str]]
"""Returns the run of each committed sample among the ids that it is given."""


class JournalError(BindDataError):
    """A journal that no run can have left."""


@dataclass(frozen=True)
class NewFile:
    """A file that waits for its row."""

    sample_id: str
    staged: str
    """Where it waits, relative to the root."""
    path: str
    """Where it belongs, relative to the root."""


@dataclass(frozen=True)
class OldFile:
    """A file whose row goes."""

    sample_id: str
    path: str
    sha256: str


@dataclass(frozen=True)
class Replacement:
    """The files that one commit brings and takes away."""

    run_id: str
    new: tuple[NewFile, ...]
    old: tuple[OldFile, ...]

    def waiting(self, layout: DatasetLayout) -> tuple[NewFile, ...]:
        """Return the new files that are not in their places yet."""
        return tuple(file for file in self.new if layout.absolute(file.staged).exists())

    def to_json(self) -> str:
        """Return the replacement as JSON that `from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes | str, source: Path | str = "The text") -> Self:
        """Rebuild a replacement from what `to_json` returned.

        Raises
        ------
        RecordError
            If the text is something else; the message names the source.
        """
        return record_from_json(cls, text, source)


def staged_path(layout: DatasetLayout, run_id: str, path: Path) -> Path:
    """Return where a run writes the file that will replace another one."""
    return _staging_folder(layout, run_id) / layout.relative(path)


def is_staged_for(layout: DatasetLayout, staged: str, path: str) -> bool:
    """Whether a path is one where some run stages the file that belongs at another; both relative to the root."""
    first, *others = PurePosixPath(staged).parts or ("",)
    return first == layout.staging_folder.name and len(others) > 1 and PurePosixPath(*others[1:]) == PurePosixPath(path)


def announce(layout: DatasetLayout, replacement: Replacement) -> Path:
    """Write down what is about to be committed, so that another run can finish it; return the journal's file."""
    journal = _staging_folder(layout, replacement.run_id) / f"{secrets.token_hex(8)}.json"
    write_bytes(journal, replacement.to_json().encode())
    return journal


def finish(layout: DatasetLayout, replacement: Replacement, journal: Path) -> None:
    """Put the new files into their places, once their rows are committed; may be repeated.

    What they replace is kept under its digest, if it is what its row said.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    replacement : Replacement
        What was committed.
    journal : Path
        What `announce` returned; removed at the end.
    """
    folders = set()
    for old in replacement.old:
        path = layout.absolute(old.path)
        if path.exists() and sha256_of(path) == old.sha256:
            _keep(path, layout.superseded_file(old.sha256))
    coming = {new.path for new in replacement.new}
    for new in replacement.new:
        staged, path = layout.absolute(new.staged), layout.absolute(new.path)
        if staged.exists():
            make_folder(path.parent)
            staged.replace(path)
            folders.add(path.parent)
            passing(Step.WITHIN_REPLACEMENT)
    for old in replacement.old:
        if old.path not in coming:
            path = layout.absolute(old.path)
            path.unlink(missing_ok=True)
            folders.add(path.parent)
    for folder in filter(Path.is_dir, folders):
        flush_folder(folder)
    journal.unlink(missing_ok=True)
    _remove_empty(_staging_folder(layout, replacement.run_id))


def unfinished(layout: DatasetLayout, committed_by: Committed) -> list[Replacement]:
    """Return what runs have committed whose files are not all in their places; nothing is changed.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    committed_by : callable
        As in `finish_interrupted`.

    Raises
    ------
    JournalError
        If a journal is damaged.
    """
    found = []
    for journal in sorted(layout.staging_folder.glob(f"*/{_JOURNALS}")):
        try:
            replacement = _read(layout, journal)
        except FileNotFoundError:  # its run has finished meanwhile
            continue
        if _committed(replacement, committed_by):
            found.append(replacement)
    return found


def finish_interrupted(layout: DatasetLayout, committed_by: Committed) -> list[str]:
    """Finish what killed runs have committed, and drop what they have not.

    Runs that are at work, which `staging_kept` tells, are left alone.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    committed_by : callable
        Returns the run of each committed sample among the ids that it is given.

    Returns
    -------
    list of str
        The runs whose commits were finished.

    Raises
    ------
    JournalError
        If a journal is damaged.
    """
    finished = []
    for folder in sorted(layout.staging_folder.glob("*")):
        if is_held(folder / _LOCK):
            continue
        for journal in sorted(folder.glob(_JOURNALS)):
            replacement = _read(layout, journal)
            if _committed(replacement, committed_by):
                finish(layout, replacement, journal)
                finished.append(replacement.run_id)
        shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(layout.staging_folder)
    return finished


@contextmanager
def staging_kept(layout: DatasetLayout, run_id: str) -> Iterator[None]:
    """Keep other runs from taking what this one stages for a killed run's; its processes may do so at the same time.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    run_id : str
        The run.
    """
    folder = _staging_folder(layout, run_id)
    with held(folder / _LOCK):
        yield
    _remove_empty(folder)


def _staging_folder(layout: DatasetLayout, run_id: str) -> Path:
    return layout.staging_folder / run_id


def _read(layout: DatasetLayout, journal: Path) -> Replacement:
    """Return what a journal says, provided that it moves and removes nothing but samples of the data set."""
    try:
        replacement = Replacement.from_json(journal.read_bytes(), journal)
        _require_of_samples(layout, replacement, journal.parent.name)
    except (RecordError, LayoutError) as error:
        raise JournalError(
            f"{journal} is not what a run leaves: {error}. It was damaged or tampered with, and nothing of it was "
            "done. Move it elsewhere; then `bind-data repair` makes anew what the data set lacks."
        ) from error
    return replacement


def _require_of_samples(layout: DatasetLayout, replacement: Replacement, run_id: str) -> None:
    if replacement.run_id != run_id:
        raise LayoutError(f"it is of the run {replacement.run_id!r}, expected {run_id!r}")
    for path in [file.path for file in replacement.new] + [file.path for file in replacement.old]:
        first, *others = PurePosixPath(path).parts or ("",)
        if first not in set(Split) or not path.endswith(".npz") or ".." in others:
            raise LayoutError(f"it speaks of {path!r}, expected samples below {' or '.join(Split)}")
        layout.absolute(path)
    for file in replacement.new:
        if not is_staged_for(layout, file.staged, file.path):
            raise LayoutError(f"{file.path} waits at {file.staged!r}, expected a path in {layout.staging_folder}")
        layout.absolute(file.staged)


def _committed(replacement: Replacement, committed_by: Committed) -> bool:
    new = {file.sample_id for file in replacement.new}
    removed = {file.sample_id for file in replacement.old} - new
    runs = committed_by(sorted(new | removed))
    return not removed & runs.keys() and all(runs.get(name) == replacement.run_id for name in new)


def _remove_empty(folder: Path) -> None:
    """Remove a folder, all below it and the one that it lies in, as far as they hold no file."""
    below = sorted((Path(path) for path, _, _ in os.walk(folder)), reverse=True)
    for path in (*below, folder.parent):
        with suppress(OSError):
            path.rmdir()


def _keep(path: Path, kept: Path) -> None:
    """Give a file's content a second name, where it does not have it yet."""
    if kept.exists():
        return
    make_folder(kept.parent)
    try:
        os.link(path, kept)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        write_bytes(kept, path.read_bytes())
    flush_folder(kept.parent)
