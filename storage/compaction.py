"""How the tables' files are arranged and kept: settings, small files merged, and what killed commits left removed.

Every commit adds a small file, and reading slows down with their number. Merging them must not slow commits down
either: files are merged up to a size only, newest first, so that a commit rewrites a bounded number of bytes however
large the table is.
"""

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, WriterProperties
from deltalake.exceptions import DeltaError, TableNotFoundError

from storage.faults import Step, passing
from storage.files import flush_file, flush_folder

TABLE_SETTINGS: dict[str, str | None] = {
    "delta.checkpointInterval": "16",
    # Delta forgets versions after a month unless told otherwise, and a model may be questioned for years.
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 5200 weeks",
    "delta.deletedFileRetentionDuration": "interval 5200 weeks",
    # Files are not skipped by the log's statistics, which checkpoints are known to confuse (delta-rs issue 3201);
    # without them, the log is a fifth of the size.
    "delta.dataSkippingNumIndexedCols": "0",
}
"""Settings of a new table."""
AFTER_COMMIT = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
"""What follows every commit."""
TARGET_BYTES = 32 * 2**20
"""Size up to which files are merged."""
LEFTOVER_AGE = timedelta(days=1)
"""Age from which a file that no version refers to is a leftover; before, a writer may be about to commit it."""

COMMIT_RETRIES = 200
_MOST_SMALL_FILES = 32
_ROWS_PER_GROUP = 1 << 14
"""Few enough that the rows of some simulations are found by reading a small part of a merged file."""

_LOG_ENTRY = re.compile(r"\d{20}\.json")
# The Delta library writes to <name>#<number> first, and renames.
_DATA_FILE = re.compile(r".+\.parquet(#\d+)?")


def commit_properties(metadata: dict[str, str], retries: int = COMMIT_RETRIES) -> CommitProperties:
    """Return how to commit: with what a commit says of itself, and how often again where another writer was faster."""
    return CommitProperties(custom_metadata=metadata, max_commit_retries=retries)


def flush_commit(path: Path) -> None:
    """Make a table's latest commit outlast a power failure, since the Delta library leaves that to the kernel.

    Parameters
    ----------
    path : Path
        Folder of the table.

    Raises
    ------
    DeltaError
        If the table cannot be read.
    OSError
        If a file or folder cannot be flushed.
    """
    version, log = DeltaTable(path).version(), path / "_delta_log"
    entry = log / f"{version:020}.json"
    of_the_log = [entry, *log.glob(f"{version:020}.checkpoint*.parquet"), log / "_last_checkpoint"]
    for file in filter(Path.is_file, [*(path / name for name in _referred_to(entry)), *of_the_log]):
        flush_file(file)
    for folder in (path, log, path.parent):
        flush_folder(folder)


def keep_compact(path: Path, metadata: dict[str, str], now: datetime) -> None:
    """Merge a table's small files once there are many, and remove leftovers then; part of every commit.

    A failure raises nothing: the rows are committed, only their arrangement is not as good as it could be, and a
    later commit tries again.

    Parameters
    ----------
    path : Path
        Folder of the table; it need not exist.
    metadata : dict
        What the commit says of itself.
    now : datetime
        UTC.
    """
    try:
        sizes = pa.table(DeltaTable(path).get_add_actions()).column("size_bytes").to_pylist()
        if sum(size < TARGET_BYTES // 2 for size in sizes) > _MOST_SMALL_FILES:
            compact(path, metadata)
            passing(Step.WITHIN_COMPACTION)
            remove_leftovers(path, now)
    except (DeltaError, OSError):
        return


def compact(path: Path, metadata: dict[str, str]) -> int:
    """Merge a table's small files now. Earlier versions keep their files.

    A process that is killed before the commit leaves files that no version refers to, and the table as it was.

    Parameters
    ----------
    path : Path
        Folder of the table; it need not exist.
    metadata : dict
        What the commit says of itself; its ``action`` is ``compact``.

    Returns
    -------
    int
        Number of files that were merged; 0 if there was nothing to merge, and no commit.

    Raises
    ------
    DeltaError
        If the table cannot be read or written.
    """
    try:
        table = DeltaTable(path)
    except TableNotFoundError:
        return 0
    metrics = table.optimize.compact(
        target_size=TARGET_BYTES,
        writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=_ROWS_PER_GROUP),
        commit_properties=commit_properties(metadata | {"action": "compact"}),
        post_commithook_properties=AFTER_COMMIT,
    )
    if metrics["numFilesRemoved"]:
        flush_commit(path)
    return int(metrics["numFilesRemoved"])


def remove_leftovers(path: Path, now: datetime) -> list[Path]:
    """Remove a table's data files that no version refers to, as killed commits leave them, once they are a day old.

    What any version refers to stays, since earlier versions can be read back. If the log is not whole from the first
    version on, it does not say what all of them refer to, and nothing is removed.

    Parameters
    ----------
    path : Path
        Folder of the table; it need not exist.
    now : datetime
        UTC.

    Returns
    -------
    list of Path
        What was removed, in order of name.

    Raises
    ------
    OSError
        If a folder cannot be listed, or a file not be removed.
    """
    log_folder = path / "_delta_log"
    if not log_folder.is_dir():
        return []
    oldest_kept = (now - LEFTOVER_AGE).timestamp()
    # Listed before the log is read: what is committed in between is in the log.
    old = {
        file.name
        for file in path.iterdir()
        if _DATA_FILE.fullmatch(file.name) and file.is_file() and file.stat().st_mtime < oldest_kept
    }
    if not old:
        return []
    log = sorted(entry for entry in log_folder.iterdir() if _LOG_ENTRY.fullmatch(entry.name))
    if not log or [int(entry.stem) for entry in log] != list(range(len(log))):
        return []
    try:
        for entry in log:
            old.difference_update(_referred_to(entry))
    except DeltaError:
        return []
    leftovers = [path / name for name in sorted(old)]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers


def _referred_to(entry: Path) -> Iterator[str]:
    try:
        lines = [json.loads(line) for line in entry.read_text(encoding="utf-8").splitlines()]
        actions = [action for line in lines for action in line.values()]
    except (ValueError, AttributeError, RecursionError) as error:
        raise DeltaError(f"{entry} is no entry of a table's log: {error}") from error
    for action in actions:
        if isinstance(action, dict) and isinstance(action.get("path"), str):
            yield unquote(action["path"])
