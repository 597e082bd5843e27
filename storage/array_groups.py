"""Things of one kind in a Zarr v3 group, sharded as packs are: along the first axis of every array lie the things.

A group grows in a folder of its own and has its name when it is whole, so that nobody sees a part of it.
"""

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from bind_core.shard_files import ShardedArray
from storage.files import flush_file, flush_folder, make_folder, one_at_a_time

GROUP_FILE = "zarr.json"
"""File by which a folder is a group."""
PER_SHARD = 128
_HERE = -100
_EXCHANGE = 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)

# As `bind_core.shard_files` reads them.
_COMPRESSION = (BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec())


class GrowingGroup:
    """A group that is being written.

    Parameters
    ----------
    folder : Path
        Where it grows.
    descriptions : mapping of str to mapping
        Attributes of its arrays by their names, such as units.
    """

    def __init__(self, folder: Path, descriptions: Mapping[str, Mapping[str, Any]]) -> None:
        self._folder = folder
        self._descriptions = descriptions
        self._group = zarr.open_group(folder, mode="w", zarr_format=3)
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._waiting: list[Mapping[str, ArrayLike]] = []

    def add(self, arrays: Mapping[str, ArrayLike]) -> None:
        """Add a thing: arrays by name, of the shapes and types of those before it."""
        self._waiting.append(arrays)
        if len(self._waiting) == PER_SHARD:
            self._write()

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Write what is not written yet, and attributes of the whole."""
        self._write()
        self._group.attrs.update(dict(attributes))
        for path in sorted(self._folder.rglob("*")):
            (flush_folder if path.is_dir() else flush_file)(path)
        flush_folder(self._folder)

    def _write(self) -> None:
        if not self._waiting:
            return
        for name in self._waiting[0]:
            values = np.stack([np.asarray(each[name]) for each in self._waiting])
            if name not in self._arrays:
                self._arrays[name] = self._group.create_array(
                    name,
                    shape=(0, *values.shape[1:]),
                    dtype=values.dtype,
                    chunks=(1, *values.shape[1:]),
                    shards=(PER_SHARD, *values.shape[1:]),
                    compressors=_COMPRESSION,
                    attributes=dict(self._descriptions.get(name, {})),
                    config={"write_empty_chunks": True},  # or a chunk of zeros would have no bytes
                )
            self._arrays[name].append(values)
        self._waiting.clear()


@contextmanager
def growing_group(folder: Path, descriptions: Mapping[str, Mapping[str, Any]]) -> Iterator[GrowingGroup]:
    """Write a group; when the context ends without an error, it takes the place of one that was there before.

    The two change places in one step, where the system and its file systems can (Linux with a local disk, not NFS).
    Elsewhere there is a moment at which neither has the name; the older one gets it back if the process is killed then.

    Parameters
    ----------
    folder : Path
        Its name. What a killed process left unfinished is removed.
    descriptions : mapping of str to mapping
        Attributes of its arrays by their names, such as units.

    Yields
    ------
    GrowingGroup
        To add things to, and to finish.
    """
    make_folder(folder.absolute().parent)
    unfinished, replaced = (folder.with_name(f".{folder.name}.{state}") for state in ("unfinished", "replaced"))
    lock = folder.with_name(f".{folder.name}.lock")
    with one_at_a_time(lock):
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        for left in (unfinished, replaced):
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield GrowingGroup(unfinished, descriptions)
            if not folder.exists():
                unfinished.rename(folder)
            elif not _exchanged(unfinished, folder):
                folder.rename(replaced)
                unfinished.rename(folder)
            flush_folder(folder.absolute().parent)
        finally:
            for left in (unfinished, replaced):
                shutil.rmtree(left, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Have two folders change places in one step; return False where that cannot be done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # of a C library that has no such call
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), ctypes.c_uint(_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def is_group(folder: Path) -> bool:
    """Whether a folder is a group, rather than a folder of files."""
    return (folder / GROUP_FILE).is_file()


def group_attributes(folder: Path) -> bytes:
    """Return the attributes of a group, as JSON.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no group.
    """
    try:
        return json.dumps(json.loads((folder / GROUP_FILE).read_bytes())["attributes"]).encode()
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / GROUP_FILE} describes no group with attributes") from error


def group_item(folder: Path, number: int) -> dict[str, NDArray]:
    """Return the arrays of a thing by its number, counted from 0.

    Raises
    ------
    OSError
        If a file cannot be read.
    ValueError, RuntimeError
        If one is damaged.
    """
    arrays = sorted(path.parent for path in folder.glob(f"*/{GROUP_FILE}"))
    return {path.name: ShardedArray(path).read(number) for path in arrays}
