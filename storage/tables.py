"""The two Delta tables as files: opened at a version, read as Arrow, appended to, and parts of them replaced."""

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import polars as pl
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from pyarrow import Table, schema, string
from pyarrow.types import is_large_string

from storage.columns import ManifestError, TableForm
from storage.compaction import AFTER_COMMIT, COMMIT_RETRIES, TABLE_SETTINGS, commit_properties, flush_commit
from storage.files import StorageFullError, make_folder


class OutrunError(ManifestError):
    """A commit that was to follow a version which another commit has followed meanwhile. Nothing was committed."""


BEFORE_THE_FIRST = -1
"""The version of a table to which nothing was committed yet."""


def table_exists(path: Path) -> bool:
    """Whether there is a table in a folder."""
    return (path / "_delta_log").is_dir() and DeltaTable.is_deltatable(str(path))


def open_table(path: Path, version: int | None = None) -> DeltaTable | None:
    """Open a table at a version, by default the latest; return None if there is no table and no version was asked for.

    Raises
    ------
    ManifestError
        If there is no such version, or the table cannot be read.
    """
    try:
        return DeltaTable(path, version=version)
    except TableNotFoundError:
        if version is None:
            return None
        raise ManifestError(f"The table {path} has no version {version}: nothing was committed to it yet.") from None
    except DeltaError as error:
        latest = open_table(path) if version is not None else None
        if latest is not None and not 0 <= (version or 0) <= latest.version():
            raise ManifestError(
                f"The table {path} has no version {version}; its versions are 0 to {latest.version()}."
            ) from error
        raise ManifestError(f"Cannot read the table {path}: {error}") from error


def table_rows(path: Path, form: TableForm, version: int | None = None) -> pl.LazyFrame:
    """Return a table, of which nothing is loaded yet.

    The files that the version consists of are read as plain Parquet: polars' Delta reader takes the path for a URL,
    in which a blank leads nowhere, and the Delta library's own data set skips files by statistics that its
    checkpoints are known to confuse (delta-rs issue 3201).

    Parameters
    ----------
    path : Path
        Folder of the table.
    form : TableForm
        Its form, for a table that does not exist yet.
    version : int, optional
        An earlier version; the latest by default. `BEFORE_THE_FIRST` has no rows.

    Raises
    ------
    ManifestError
        If there is no such version, or the table cannot be read.
    """
    files, schema = table_files(path, form, version)
    if not files:
        return pl.LazyFrame(schema=schema)
    return pl.scan_parquet(files, schema=schema, glob=False, hive_partitioning=False)


def table_files(path: Path, form: TableForm, version: int | None = None) -> tuple[list[Path], pl.Schema]:
    """Return the Parquet files that hold a table's rows, and its columns; parameters and errors as of `table_rows`."""
    table = None if version == BEFORE_THE_FIRST else open_table(path, version)
    if table is None:
        return [], pl.Schema(form.schema())
    files = [path / PurePosixPath(uri).name for uri in table.file_uris()]  # whose folder is percent-encoded
    return files, pl.Schema(table.schema().to_arrow())


def table_history(path: Path) -> list[dict[str, Any]]:
    """Return what each commit to a table says of itself, oldest first; nothing if there is no such table.

    Parameters
    ----------
    path : Path
        Folder of the table.

    Returns
    -------
    list of dict
        ``version``, ``timestamp`` (milliseconds since 1970, UTC), ``operation`` and ``operationMetrics`` as Delta has
        them, and what the committer added, as text.

    Raises
    ------
    ManifestError
        If the table cannot be read.
    """
    table = open_table(path)
    try:
        history: list[dict[str, Any]] = [] if table is None else table.history()
        for entry in history:
            entry.setdefault("operation", "")  # a commit need not say what it was
            datetime.fromtimestamp(entry["timestamp"] / 1000, UTC)
    except (DeltaError, OSError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ManifestError(f"Cannot read the history of the table {path}: {error}") from error
    return sorted(history, key=lambda entry: entry["version"])


def _plain(rows: pl.DataFrame) -> Table:
    """Return rows with texts as Arrow's plain strings; in files of polars' string views, texts cannot be filtered."""
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    texts = [field.with_type(string()) if is_large_string(field.type) else field for field in table.schema]
    return table.cast(schema(texts))


def read_rows(
    path: Path,
    form: TableForm,
    version: int | None = None,
    columns: list[str] | None = None,
    where: pl.Expr | None = None,
) -> pl.DataFrame:
    """Return rows of a table.

    Parameters
    ----------
    path : Path
        Folder of the table.
    form : TableForm
        Its form, for a table that does not exist yet.
    version : int, optional
        An earlier version; the latest by default.
    columns : list of str, optional
        Which columns; all by default.
    where : Expr, optional
        Which rows; all by default.

    Raises
    ------
    ManifestError
        If there is no such version, or the table cannot be read.
    """
    rows = table_rows(path, form, version)
    if where is not None:
        rows = rows.filter(where)
    if columns is not None:
        rows = rows.select(columns)
    try:
        return rows.collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise unreadable_table(path, error) from error


def unreadable_table(path: Path, reason: Exception) -> ManifestError:
    """Return the error for a table with a file that is missing or damaged."""
    return ManifestError(
        f"Cannot read the table {path}: {reason}. One of its files is missing or damaged; restore it from a copy, or "
        "read an earlier version."
    )


def one_of(column: str, texts: Iterable[str]) -> pl.Expr:
    """Return the condition that a column holds one of some texts, of which there may be none."""
    return pl.col(column).is_in(pl.Series(list(texts), dtype=pl.String).implode())


def overwrite_rows(
    path: Path, rows: pl.DataFrame, simulations: Sequence[str], metadata: dict[str, str], version: int
) -> None:
    """Replace all rows of some simulations in one commit, the one after `version`; raises as `append_rows` does."""
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in simulations)
    with _failures_explained(path, rows, version):
        write_deltalake(
            DeltaTable(path, version=version),
            _plain(rows),
            mode="overwrite",
            predicate=f"simulation IN ({names})",
            commit_properties=commit_properties(metadata, retries=0),
            post_commithook_properties=AFTER_COMMIT,
        )
        flush_commit(path)


def append_rows(path: Path, rows: pl.DataFrame, metadata: dict[str, str], version: int | None = None) -> None:
    """Add rows to a table in one commit; the first one makes the table.

    Parameters
    ----------
    path : Path
        Folder of the table.
    rows : DataFrame
        At least one.
    metadata : dict
        What the commit says of itself.
    version : int, optional
        Make it the commit after this version, `BEFORE_THE_FIRST` for the first, or none; after any by default.

    Raises
    ------
    OutrunError
        If it would not be the commit after `version`, since another was faster. Nothing was committed.
    StorageFullError
        If the disk or the quota is full.
    ManifestError
        If they cannot be committed for another reason.
    """
    make_folder(path)
    if version is None and not table_exists(path):
        with suppress(OutrunError):
            append_rows(path, rows, metadata, BEFORE_THE_FIRST)
            return
    with _failures_explained(path, rows, version):
        write_deltalake(
            path if version in (None, BEFORE_THE_FIRST) else DeltaTable(path, version=version),
            _plain(rows),
            mode="error" if version == BEFORE_THE_FIRST else "append",
            configuration=TABLE_SETTINGS if version == BEFORE_THE_FIRST else None,
            commit_properties=commit_properties(metadata, retries=COMMIT_RETRIES if version is None else 0),
            post_commithook_properties=AFTER_COMMIT,
        )
        flush_commit(path)


@contextmanager
def _failures_explained(path: Path, rows: pl.DataFrame, version: int | None) -> Iterator[None]:
    try:
        yield
    except (DeltaError, OSError) as error:
        if f"os error {errno.ENOSPC}" in str(error) or f"os error {errno.EDQUOT}" in str(error):
            raise StorageFullError.at(path, "no space left") from error
        said = f"Cannot commit {rows.height} rows to the table {path}: {error}"
        # Of two first commits, the slower one is told by a mere DeltaError that there is a table.
        first = version == BEFORE_THE_FIRST and table_exists(path)
        if version is not None and (first or isinstance(error, CommitFailedError)):
            raise OutrunError(f"{said}. Another commit was faster.") from error
        raise ManifestError(said) from error
