"""The files under ``train/`` and ``test/``, and which of them and of the manifest's rows have no counterpart."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from bind_core.splits import Split
from storage.columns import SAMPLES
from storage.files import TEMPORARY_SUFFIX, is_temporary
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.tables import read_rows
from storage.versions import DatasetVersion

TAKEN_FOR_SAMPLE = r"[^/]*halo[^/]*\.npz$"
"""Paths that readers take for samples, which walk the folders."""

_FILES = {"path": pl.String, "found_bytes": pl.Int64}
_FOLDER = re.compile(r"(?:train|test)/sim_([^/]+)/")


@dataclass(frozen=True)
class UnmatchedFiles:
    """Where files and rows do not agree: paths relative to the root, in order, by simulation."""

    orphaned: dict[str, tuple[str, ...]] | None
    """Files without a row; under the empty name those that lie in no simulation's folder. None for an earlier version,
    to which no file belongs."""
    lost: dict[str, tuple[str, ...]]
    """Files that rows speak of and that are not there."""
    waiting: dict[str, int]
    """Files whose rows are committed, and which wait to be put into their places: their number by run."""

    @property
    def sound(self) -> bool:
        """Whether every row has its file, and readers that walk the folders take nothing else for a sample."""
        taken = re.compile(TAKEN_FOR_SAMPLE)
        strays = any(taken.search(path) for paths in (self.orphaned or {}).values() for path in paths)
        return not (self.lost or self.waiting or strays)


def list_files(layout: DatasetLayout) -> pl.DataFrame:
    """Return every file under ``train/`` and ``test/`` that is no temporary file of a write.

    Returns
    -------
    DataFrame
        ``path``, relative to the root, and ``found_bytes``: null for what is no regular file, such as a broken link.
    """
    rows = [(f"{folder}/{entry.name}", _size(entry)) for folder, files in _folders(layout) for entry in files]
    return pl.DataFrame(rows, schema=_FILES, orient="row")


def unmatched_files(layout: DatasetLayout, version: DatasetVersion | None = None) -> UnmatchedFiles:
    """Hold the files against the rows by their names alone; no file is looked at.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    version : DatasetVersion, optional
        Whose rows to look for, the latest by default. What was made anew since is looked for where it was kept.

    Raises
    ------
    ManifestError
        If the manifest cannot be read.
    """
    there = pl.DataFrame(
        {"path": [f"{folder}/{entry.name}" for folder, files in _folders(layout) for entry in files]},
        schema={"path": pl.String},
    )
    if version is None:
        rows = read_rows(layout.samples_table, SAMPLES, columns=["path"])
        orphaned = there.join(rows, on="path", how="anti")["path"]
        lost = rows.join(there, on="path", how="anti")["path"]
        return UnmatchedFiles(_by_simulation(layout, orphaned), _by_simulation(layout, lost), _waiting(layout))
    columns = ["path", "sha256"]
    in_place = read_rows(layout.samples_table, SAMPLES, columns=columns).join(there, on="path", how="semi")
    then = read_rows(layout.samples_table, SAMPLES, version.number, columns)
    elsewhere = then.join(in_place, on=columns, how="anti")
    kept = [layout.superseded_file(sha256).is_file() for sha256 in elsewhere["sha256"]]
    lost = elsewhere.filter(~pl.Series(kept, dtype=pl.Boolean))["path"]
    return UnmatchedFiles(None, _by_simulation(layout, lost), {})


def _waiting(layout: DatasetLayout) -> dict[str, int]:
    waiting: dict[str, int] = {}
    for replacement in Manifest(layout).unfinished():
        if files := len(replacement.waiting(layout)):
            waiting[replacement.run_id] = waiting.get(replacement.run_id, 0) + files
    return waiting


def _folders(layout: DatasetLayout) -> Iterator[tuple[str, list["os.DirEntry[str]"]]]:
    """Yield each folder under ``train/`` and ``test/``, relative to the root, with its files."""
    waiting = [str(split) for split in Split]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(layout.root / folder) as entries:
                found = list(entries)
        except (FileNotFoundError, NotADirectoryError):
            continue
        # A link to a folder is not followed: it may lead out of the data set, or in a circle.
        files = [entry for entry in found if not entry.is_dir(follow_symlinks=False)]
        if len(files) < len(found):
            waiting += [f"{folder}/{entry.name}" for entry in found if entry.is_dir(follow_symlinks=False)]
        yield (
            folder,
            [
                entry
                for entry in files
                if not (entry.name.endswith(TEMPORARY_SUFFIX) and is_temporary(Path(entry.name)))
            ],
        )


def _size(entry: "os.DirEntry[str]") -> int | None:
    try:
        return entry.stat().st_size if entry.is_file() else None
    except OSError:
        return None


def _by_simulation(layout: DatasetLayout, paths: pl.Series) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for path in paths.drop_nulls().unique().sort():
        folder = _FOLDER.match(path)
        found.setdefault(f"{layout.set_name}_{folder.group(1)}" if folder else "", []).append(path)
    return {name: tuple(of_one) for name, of_one in found.items()}
