"""Pages of files that the system holds in memory: put out, and counted."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)


def drop_cached(paths: Sequence[Path]) -> None:
    """Have the system forget the content of files; their names and sizes it may still know."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not on disk yet stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_share(paths: Sequence[Path]) -> float:
    """Return the share of the files' pages that lie in memory, from 0 to 1."""
    cached = pages = 0
    for path in paths:
        if path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                content = np.frombuffer(mapped, np.uint8)
                held = np.zeros(-(-len(content) // mmap.PAGESIZE), np.uint8)
                asked = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(len(content))
                if _libc.mincore(*asked, held.ctypes.data_as(ctypes.c_void_p)):
                    raise OSError(ctypes.get_errno(), f"mincore of {path}")
                del content
                cached += int((held & 1).sum())
                pages += len(held)
    return cached / max(pages, 1)
