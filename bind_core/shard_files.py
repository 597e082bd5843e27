"""One sample's arrays out of a pack's shards, with one read each.

A shard of Zarr v3 is a file of chunks, one per sample, with an index at its end. Zarr's own reader asks for the index
with every chunk and goes through an event loop, which costs more than decompressing does. What packs hold is known,
so that their shards are read here without it: an index once, a chunk by its place. Reads keep no position and start
no thread, hence work in forked workers as they do in their parent.
"""

import json
import os
import reprlib
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

_OPEN_FILES = 64
"""Shards of one array that a process keeps open."""
_HELD_BYTES = 1024
"""Of an array with less than this per sample, a shard is read whole and held: in a file system's eyes, it is tiny."""
_CHUNK_CODECS = ["bytes", "blosc", "crc32c"]
_INDEX_CODECS = ["bytes", "crc32c"]
_CHECKSUM_BYTES = 4
_BLOSC_HEADER_BYTES = 16
_LONGEST_DESCRIPTION = 1 << 20
_LARGE_CHUNK = 64 << 20
_MOST_EXPANSION = 1000
"""Maps hardly compress: of a large chunk, at least a thousandth of its bytes is in the file."""
_ABSENT = np.iinfo(np.uint64).max


class ShardedArray:
    """An array of a pack, of which samples are read one by one.

    Parameters
    ----------
    folder : Path
        The array's folder in the group.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is no array as `bind-data pack` writes it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            metadata: dict[str, Any] = json.loads(_short_text(folder / "zarr.json"))
            (sharding,) = metadata["codecs"]
            how = sharding["configuration"]
            codecs = [[codec["name"] for codec in how[kind]] for kind in ("codecs", "index_codecs")]
            self.n_samples, *shape = _extents(metadata["shape"])
            self.shape = tuple(shape)
            self.dtype = _number_type(metadata["data_type"])
            self._per_shard, *whole = _extents(metadata["chunk_grid"]["configuration"]["chunk_shape"])
            chunk = _extents(how["chunk_shape"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{folder / 'zarr.json'} describes no array of shards: {reprlib.repr(error)}") from error
        found = (*codecs, how.get("index_location", "end"), chunk, tuple(whole))
        if found != (_CHUNK_CODECS, _INDEX_CODECS, "end", (1, *self.shape), self.shape):
            raise ValueError(
                f"{folder / 'zarr.json'} describes other shards than a pack has: expected chunks of one sample, coded "
                f"by {', '.join(_CHUNK_CODECS)}, with the index at the end; found chunks {chunk}, coded by "
                f"{reprlib.repr(codecs[0])}"
            )
        attributes = metadata.get("attributes", {})
        self.attributes: dict[str, Any] = attributes if isinstance(attributes, dict) else {}
        self._bytes = prod(self.shape) * self.dtype.itemsize
        self._indices: dict[int, NDArray[np.uint64]] = {}
        self._held: dict[int, NDArray] = {}
        # A file that falls out of the cache is closed when the last thread that reads it is done.
        self._file = lru_cache(maxsize=_OPEN_FILES)(self._opened)

    def announce(self, numbers: Sequence[int]) -> None:
        """Have the system fetch the chunks of samples that are read next, all at the same time."""
        if self._bytes < _HELD_BYTES:
            return
        for number in numbers:
            file, offset, size = self._place(number)
            os.posix_fadvise(file.descriptor, offset, size, os.POSIX_FADV_WILLNEED)

    def read(self, number: int) -> NDArray:
        """Return a sample's array by the sample's number, counted from 0.

        Raises
        ------
        OSError
            If a shard cannot be read.
        ValueError
            If it is damaged.
        """
        if self._bytes < _HELD_BYTES:
            shard, chunk = divmod(number, self._per_shard)
            return np.array(self._held_shard(shard)[chunk])
        file, offset, size = self._place(number)
        return self._decoded(file.read(offset, size), file.path)

    def _held_shard(self, shard: int) -> NDArray:
        if shard not in self._held:
            file = self._opened(shard)
            content = file.read(0, file.size())
            places = self._parsed_index(content[-self._index_bytes :], file.path)
            in_shard = min(self._per_shard, self.n_samples - shard * self._per_shard)
            chunks = [content[offset : offset + size] for offset, size in places[:in_shard].tolist()]
            self._held[shard] = np.stack([self._decoded(chunk, file.path) for chunk in chunks])
        return self._held[shard]

    def _place(self, number: int) -> tuple["_ShardFile", int, int]:
        """Return where a sample's chunk is: its file, and the first byte in it and the number of bytes."""
        shard, chunk = divmod(number, self._per_shard)
        file = self._file(shard)
        if shard not in self._indices:
            content = file.read(file.size() - self._index_bytes, self._index_bytes)
            self._indices[shard] = self._parsed_index(content, file.path)
        offset, size = self._indices[shard][chunk].tolist()
        if offset == _ABSENT:
            raise ValueError(f"{file.path} lacks the chunk of sample {number}")
        if offset + size > file.size():
            raise ValueError(f"{file.path} is truncated: it has {file.size():,} bytes")
        return file, offset, size

    @property
    def _index_bytes(self) -> int:
        return 2 * np.dtype(np.uint64).itemsize * self._per_shard + _CHECKSUM_BYTES

    def _parsed_index(self, content: bytes, path: Path) -> NDArray[np.uint64]:
        return np.frombuffer(_sound(content, path), dtype="<u8").reshape(self._per_shard, 2)

    def _decoded(self, content: bytes, path: Path) -> NDArray:
        compressed = _sound(content, path)
        claimed = int.from_bytes(compressed[4:8], "little")
        if len(compressed) < _BLOSC_HEADER_BYTES or claimed != self._bytes:
            raise ValueError(f"{path} has a chunk of {claimed:,} bytes; expected {self._bytes:,}")
        if claimed > max(_LARGE_CHUNK, _MOST_EXPANSION * len(compressed)):
            raise ValueError(f"{path} claims {claimed:,} bytes of a chunk that it holds {len(compressed):,} bytes of")
        array = np.empty(self.shape, self.dtype)
        blosc.decompress(compressed, array)
        return array

    def _opened(self, shard: int) -> "_ShardFile":
        return _ShardFile(self.folder.joinpath("c", str(shard), *["0"] * len(self.shape)))


class _ShardFile:
    """A file that is open for as long as somebody uses it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or offset + size > self.size():
            raise ValueError(f"{self.path} is truncated: it has {self.size():,} bytes")
        content = os.pread(self.descriptor, size, offset)
        if len(content) != size:
            raise ValueError(f"{self.path} is truncated: expected {size:,} bytes from {offset:,}, found {len(content)}")
        return content


def _short_text(path: Path) -> bytes:
    size = path.stat().st_size
    if size > _LONGEST_DESCRIPTION:
        raise ValueError(f"it has {size:,} bytes, expected at most {_LONGEST_DESCRIPTION:,}")
    return path.read_bytes()


def _extents(values: Any) -> tuple[int, ...]:
    """Return the extents of an array, of which there are some, all of them at least 1."""
    extents = tuple(values)
    if not extents or not all(type(extent) is int and 0 < extent < _ABSENT for extent in extents):
        raise ValueError(f"the shape {reprlib.repr(values)}")
    return extents


def _number_type(name: Any) -> np.dtype:
    dtype = np.dtype(name) if isinstance(name, str) else np.dtype(object)
    if dtype.kind not in "fiu":
        raise ValueError(f"values of the type {reprlib.repr(name)}, expected numbers")
    return dtype


def _sound(content: bytes, path: Path) -> bytes:
    """Return what stands before a checksum that it agrees with."""
    data = content[:-_CHECKSUM_BYTES]
    expected, found = int.from_bytes(content[-_CHECKSUM_BYTES:], "little"), google_crc32c.value(data)
    if found != expected:
        raise ValueError(f"{path} is damaged: expected the checksum {expected:08x}, found {found:08x}")
    return data
