"""Files that are either whole or not there: atomic writes, their leftovers, and digests."""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Self

from bind_core.errors import BindDataError

TEMPORARY_SUFFIX = ".bind-tmp"

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{16}" + re.escape(TEMPORARY_SUFFIX))
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class StorageFullError(BindDataError):
    """A write that the disk, or the user's quota on it, has no room for.

    Attributes
    ----------
    path : Path
        What was being written.
    bytes_free : int or None
        Free bytes on that file system; None if that could not be asked. A quota may be exhausted all the same.
    """

    def __init__(self, message: str, path: Path, bytes_free: int | None) -> None:
        super().__init__(message)
        self.path = path
        self.bytes_free = bytes_free

    @classmethod
    def at(cls, path: Path, reason: str) -> Self:
        """Describe a failed write of `path`, with the free space as it is now."""
        free = _bytes_free(path)
        room = "an unknown number of bytes are free" if free is None else f"{free:,} bytes are free"
        return cls(
            f"Cannot write {path}: {reason}; {room} on that file system. Nothing was damaged: files written before "
            f"stay as they are, and this one was not replaced. Free some space or raise the quota, then run again.",
            path,
            free,
        )


def is_full(error: OSError) -> bool:
    """Whether an error says that the disk or the quota is exhausted."""
    return error.errno in _NO_SPACE


def atomic_write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file so that at any moment, a crash included, `path` holds its old content, or none, or all of the new.

    The bytes go to a temporary file beside it, which is flushed to disk and then renamed; the folder is
    flushed as well, so that the name itself survives a power failure. Missing folders are made.

    Parameters
    ----------
    path : Path
        The file to make or replace.
    write : callable
        Writes the content to the binary file that it is given.

    Raises
    ------
    StorageFullError
        If the disk or the quota is full.
    OSError
        If the file cannot be written for any other reason. Whatever is raised, the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
    try:
        make_folder(path.parent)
        try:
            # Unlike those of `tempfile`, the file gets the permissions that the user's umask gives to any file.
            with temporary.open("xb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except OSError as error:
        if is_full(error):
            raise StorageFullError.at(path, os.strerror(error.errno or errno.ENOSPC)) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` with `atomic_write`."""

    def write(stream: BinaryIO) -> None:
        stream.write(content)

    atomic_write(path, write)


def is_temporary(path: Path) -> bool:
    """Whether a file's name is that of a temporary file of `atomic_write`."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def remove_stale_temporaries(folder: Path) -> list[Path]:
    """Remove what killed writers left in a folder.

    Call it only where no other process is writing: a temporary file in use looks the same.

    Parameters
    ----------
    folder : Path
        Looked at without its subfolders; it need not exist.

    Returns
    -------
    list of Path
        What was removed, in order of name.
    """
    if not folder.is_dir():
        return []
    stale = sorted(entry for entry in folder.iterdir() if is_temporary(entry) and not entry.is_dir())
    for leftover in stale:
        leftover.unlink(missing_ok=True)
    return stale


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder and those that it lies in, so that they outlast a power failure."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def flush_folder(folder: Path) -> None:
    """Make renames, links and removals in a folder outlast a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to flush a folder; their servers do it with the rename.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP, errno.EBADF}:
            raise
    finally:
        os.close(descriptor)


def _bytes_free(path: Path) -> int | None:
    for folder in path.absolute().parents:
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None
