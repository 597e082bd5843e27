"""Files that are either whole or not there: atomic writes, their leftovers, and digests."""

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, BinaryIO, Self

from bind_core.errors import BindDataError
from storage.faults import Step, passing

TEMPORARY_SUFFIX = ".bind-tmp"

_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{16}" + re.escape(TEMPORARY_SUFFIX))
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
# The last one is for files that are open for reading only, on a network file system.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
_LOCKED = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_LEFT_BEHIND = 24 * 3600.0
_TURN_POLL = 0.01


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


def atomic_write(path: Path, write: Callable[[BinaryIO], None], *, replace: bool = True) -> None:
    """Write a file so that at any moment, a crash included, `path` holds its old content, or none, or all of the new.

    The bytes go to a temporary file beside it, which is flushed to disk and then renamed; the folder is
    flushed as well, so that the name itself survives a power failure. Missing folders are made. The temporary file
    is locked until then: that is how `remove_stale_temporaries` of another process knows that somebody is writing it.

    Parameters
    ----------
    path : Path
        The file to make or replace.
    write : callable
        Writes the content to the binary file that it is given.
    replace : bool
        Replace what is there. If not, a file that is there, or that appears in the meantime, is left alone.

    Raises
    ------
    StorageFullError
        If the disk or the quota is full.
    FileExistsError
        If the file exists and is not to be replaced.
    OSError
        If the file cannot be written for any other reason. Whatever is raised, the temporary file is removed.
    """
    try:
        make_folder(path.parent)
        with _locked_temporary(path) as (temporary, stream):
            write(stream)
            stream.flush()
            passing(Step.BETWEEN_WRITE_AND_FSYNC)
            os.fsync(stream.fileno())
            passing(Step.BETWEEN_FSYNC_AND_RENAME)
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        if is_full(error):
            raise StorageFullError.at(path, os.strerror(error.errno or errno.ENOSPC)) from error
        raise


def write_bytes(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write `content` with `atomic_write`."""

    def write(stream: BinaryIO) -> None:
        stream.write(content)

    atomic_write(path, write, replace=replace)


def is_temporary(path: Path) -> bool:
    """Whether a file's name is that of a temporary file of `atomic_write`."""
    return _TEMPORARY_NAME.fullmatch(path.name) is not None


def remove_stale_temporaries(folder: Path) -> list[Path]:
    """Remove what killed writers left in a folder; what a living process is writing, on any host, stays.

    A writer holds a lock on its temporary file, which ends with the process. On a file system without locks, a
    temporary file counts as left behind when nothing was written to it for a day.

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
    temporaries = sorted(entry for entry in folder.iterdir() if is_temporary(entry) and entry.is_file())
    return [temporary for temporary in temporaries if _removed_if_stale(temporary)]


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let only one process, on any host, do at a time what is done in this context; the others wait.

    On a file system without locks, nobody waits.

    Parameters
    ----------
    path : Path
        A file that is there for this alone; made if it is missing.

    Raises
    ------
    OSError
        If it cannot be made or opened for writing.
    """
    with _locked(path, fcntl.LOCK_EX):
        yield


@contextmanager
def in_turn(path: Path, patience: float) -> Iterator[None]:
    """Wait for one's turn, but not for ever: for what goes well at the same time, only with more effort.

    Parameters
    ----------
    path : Path
        A file that is there for this alone; made if it is missing.
    patience : float
        Seconds after which nobody's turn is waited for any more: whoever has it may have been stopped.

    Raises
    ------
    OSError
        If it cannot be made or opened.
    """
    deadline = time.monotonic() + patience
    with _opened(path) as stream:
        while try_lock(stream) is False and time.monotonic() < deadline:
            time.sleep(_TURN_POLL)
        yield


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a file, as any number of processes may at a time, so that `is_held` tells that one of them is alive.

    The last one removes it.

    Parameters
    ----------
    path : Path
        A file that is there for this alone; made if it is missing.

    Raises
    ------
    OSError
        If it cannot be made or opened for writing.
    """
    with _locked(path, fcntl.LOCK_SH) as stream:
        try:
            yield
        finally:
            if try_lock(stream) is not False:
                path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether a living process is in the context `held` of a file; on a file system without locks, since a day ago."""
    try:
        with path.open("r+b") as stream:
            locked = try_lock(stream)
            return time.time() - os.fstat(stream.fileno()).st_mtime < _LEFT_BEHIND if locked is None else not locked
    except FileNotFoundError:
        return False
    except PermissionError:
        return True  # another user's, of whom nothing is known


def _opened(path: Path) -> IO[bytes]:
    while True:
        make_folder(path.parent)
        with suppress(FileNotFoundError):  # the folder was empty, and somebody has removed it
            try:
                return path.open("a+b")
            except PermissionError:  # another user's, which can be locked all the same
                return path.open("rb")


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[IO[bytes]]:
    """Wait for a lock on a file, which is made if it is missing; go on where the file system knows no locks."""
    with _opened(path) as stream:
        try:
            fcntl.flock(stream, kind)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield stream


@contextmanager
def _locked_temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Offer a new, locked file beside `path`; at the end it is gone, unless it was renamed."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")
        # Unlike those of `tempfile`, the file gets the permissions that the user's umask gives to any file.
        with temporary.open("xb") as stream:
            try:
                if try_lock(stream) is not False and os.fstat(stream.fileno()).st_nlink:
                    yield temporary, stream
                    return
            finally:
                temporary.unlink(missing_ok=True)
        # Somebody took it for a leftover before it was locked.


def try_lock(stream: IO[bytes], *, shared: bool = False) -> bool | None:
    """Lock a file until it is closed; return whether that worked, or None where the file system knows no locks.

    Parameters
    ----------
    stream : file object
        Open for writing, which network file systems ask for.
    shared : bool
        Let others lock it in the same way.
    """
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in _LOCKED:
            return False
        raise
    return True


def _removed_if_stale(temporary: Path) -> bool:
    try:
        with temporary.open("r+b") as stream:  # locks on a network file system are for files open for writing
            locked = try_lock(stream)
            unused = time.time() - os.fstat(stream.fileno()).st_mtime
            stale = unused > _LEFT_BEHIND if locked is None else locked
            if stale:
                temporary.unlink()
    except FileNotFoundError:
        return False  # its writer was done just now
    except PermissionError:
        return False  # another user's
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


def flush_file(path: Path) -> None:
    """Make a file's content, written by others, outlast a power failure."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


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
