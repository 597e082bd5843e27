"""What an HDF5 file holds, against what it claims to hold: looked at before memory is set aside for it.

A file of a few kilobytes can declare a dataset of 10^12 rows, or one whose numbers are in another file. The shape alone
is therefore not believed: what is read has to lie in the file, all of it.
"""

import errno
import math
import os

import h5py

_MOST_LINKS = 16
_ATTRIBUTE_BYTES = 1 << 16
"""What HDF5 itself allows to an attribute in its header; the widest that is read has a number per particle type."""
_SMALL_CHUNK = 64 << 20
"""Bytes of a chunk that may be larger than its dataset, as those that can grow begin."""
_SMALL_POSITIONS = 1 << 30
_POSITIONS_RATIO = 100
"""Positions of particles differ in most of their bits: no compressor makes them 10 times smaller."""

_FILTERS = {1: 1, 2: 1, 3: 0, 5: 0, 6: 0, 32000: 0, 32001: 4, 32004: 0, 32008: 3, 32015: 0, 32026: 4}
"""Filters of a dataset that are read, by their registered numbers, with the least number of parameters of each.

They are deflate, shuffle, checksum, N-bit, scale-offset, LZF, Blosc, LZ4, Bitshuffle, Zstandard and Blosc2. Not all of
them look whether their parameters are there: without, Blosc takes the process down.
"""


class StoredDataError(Exception):
    """A file claims what it does not hold; says so as part of a sentence that begins with the file."""


def member(group: h5py.Group, name: str, links: int = 0) -> h5py.HLObject | None:
    """Return what a file has under a name, or None where there is nothing.

    Parameters
    ----------
    group : h5py.Group
        Where to begin; names that begin with ``/`` begin at the root.
    name : str
        One or more names, with ``/`` between them.
    links : int
        How many soft links have led here.

    Raises
    ------
    StoredDataError
        If it is in another file, or soft links go in a circle.
    """
    place: h5py.HLObject | None = group.file if name.startswith("/") else group
    for part in filter(None, name.split("/")):
        if not isinstance(place, h5py.Group):
            return None
        link = place.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise StoredDataError(
                f"{name} is a link to another file, {link.filename}; expected the data itself. Copy it into the file "
                "or fetch the file that has it"
            )
        if isinstance(link, h5py.SoftLink):
            if links == _MOST_LINKS:
                raise StoredDataError(f"{name} is a link that leads to no end. The file is damaged: fetch it again")
            place = member(place, link.path, links + 1)
        else:
            place = place.get(part)
    return place


def require_short(attributes: h5py.AttributeManager, name: str) -> None:
    """Make sure that an attribute is of a size that one of a header can have.

    Raises
    ------
    StoredDataError
        If it claims more.
    """
    size = attributes.get_id(name).get_storage_size()
    if size > _ATTRIBUTE_BYTES:
        raise StoredDataError(
            f"the attribute {name} claims {size:,} bytes; expected at most {_ATTRIBUTE_BYTES:,}. The file is damaged: "
            "fetch it again"
        )


def require_stored(dataset: h5py.Dataset, *, positions: bool = False) -> None:
    """Make sure that all rows of a dataset of numbers are in its own file.

    Files written by a simulation pass: whoever wrote the rows has made all chunks, or the whole block where there are
    none. What was never written would be read as zeros, and a view of other files would not be seen to change.

    Parameters
    ----------
    dataset : h5py.Dataset
        Of numbers.
    positions : bool
        Whether it holds positions, which hardly compress: then a large one needs a storage in proportion.

    Raises
    ------
    StoredDataError
        If they are not.
    """
    name, claimed = dataset.name, dataset.size * dataset.dtype.itemsize
    if dataset.is_virtual or dataset.external:
        raise StoredDataError(
            f"the numbers of {name} are in other files; expected them in this one. Fetch the file that has them, or "
            "copy them into one"
        )
    _require_known_filters(dataset)
    stored = dataset.id.get_storage_size()
    if dataset.chunks:
        chunk = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if chunk > max(claimed, _SMALL_CHUNK):
            raise StoredDataError(
                f"{name} has chunks of {chunk:,} bytes for {claimed:,} bytes of numbers. The file is damaged: fetch it "
                "again"
            )
        needed = math.prod(-(-extent // size) for extent, size in zip(dataset.shape, dataset.chunks, strict=True))
        there = dataset.id.get_num_chunks()
        incomplete = there < needed and f"{there:,} of its {needed:,} chunks"
    else:
        incomplete = stored < claimed and f"{stored:,} bytes of them"
    if incomplete:
        raise StoredDataError(
            f"{name} claims {claimed:,} bytes of numbers with its shape {dataset.shape}, but the file holds "
            f"{incomplete}. It is incomplete: fetch it again"
        )
    size = dataset.file.id.get_filesize()
    too_small = positions and claimed > max(_SMALL_POSITIONS, _POSITIONS_RATIO * stored)
    if stored > size or too_small:
        raise StoredDataError(
            f"{name} claims {claimed:,} bytes of numbers with its shape {dataset.shape}, more than the "
            f"{min(stored, size):,} bytes that the file has of them can hold. It is damaged: fetch it again"
        )
    if positions and claimed > _SMALL_POSITIONS:
        written = _written_bytes(dataset.file.filename, stored)
        if written < stored:
            raise StoredDataError(
                f"{name} claims {claimed:,} bytes of numbers with its shape {dataset.shape}, but of the {size:,} bytes "
                f"of the file only {written:,} were ever written; the rest are holes. It is incomplete: fetch it again"
            )


def _written_bytes(path: str, enough: int) -> int:
    """Return how many bytes of a file are no holes; counts no further than to what is enough.

    A hole is a range that was never written and takes no room on disk, however large: it would be read as zeros. Where
    the file system does not tell them, there are none.
    """
    written = 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        end = os.fstat(descriptor).st_size
        position = 0
        while position < end and written < enough:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            position = os.lseek(descriptor, start, os.SEEK_HOLE)
            written += position - start
    except OSError as error:
        # No data after here; any other error says that the file system cannot tell.
        return written if error.errno == errno.ENXIO else enough
    finally:
        os.close(descriptor)
    return written


def _require_known_filters(dataset: h5py.Dataset) -> None:
    properties = dataset.id.get_create_plist()
    for position in range(properties.get_nfilters()):
        number, _, parameters, name = properties.get_filter(position)
        least = _FILTERS.get(number)
        if least is None or len(parameters) < least:
            what = "which is not read" if least is None else f"with {len(parameters)} of its {least} parameters or more"
            raise StoredDataError(
                f"{dataset.name} is stored by filter {number} ({name[:40]!r}), {what}. Fetch the file again, or "
                "rewrite it with gzip (h5repack)"
            )
