"""Named arrays in one ``.npz``: always the same bytes for the same arrays, read without trust.

`numpy.savez` stamps the time into the archive and compresses slowly; `numpy.load` allocates whatever size an
array claims to have. Both sides are therefore written out here; the format is the same, and either side works
with numpy on the other.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from zlib_ng import zlib_ng

from bind_core.errors import BindDataError

# Maps of floats hold runs of zeros and hardly anything else that repeats, so run-length matching compresses as
# well as a full search and six times faster. It knows no hash table, which is why its output depends neither on
# the processor nor on the implementation: the standard library's zlib gives the same bytes, only slower.
_STRATEGY = zlib_ng.Z_RLE
_LEVEL = 1
_MEMORY_LEVEL = 9
_RAW_DEFLATE = -15

_DEFLATED = 8
_VERSION_NEEDED = 20
_MADE_BY_UNIX = 3 << 8 | _VERSION_NEEDED
_PERMISSIONS = 0o644 << 16
_DOS_DATE = 1 << 5 | 1
"""The first day that the format knows, 1980-01-01."""
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_ZIP_LIMIT = 2**32 - 1

_DEFLATE_MAX_RATIO = 1040
"""Deflate stores 258 bytes in two bits at the best, 1032 to 1; the rest allows for small members."""


# What damaged archives and array headers make the standard library and numpy raise (an unknown compression is a
# RuntimeError too).
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


class ArchiveError(BindDataError):
    """An ``.npz`` that cannot be read or made."""


def encode_arrays(arrays: Mapping[str, ArrayLike]) -> bytes:
    """Return arrays as the content of a compressed ``.npz``.

    Parameters
    ----------
    arrays : mapping of str to array or number
        Of numbers or of text; written in the mapping's order, little-endian and in C order.

    Returns
    -------
    bytes
        Equal for equal arrays, on any day and machine. `numpy.load` reads them.

    Raises
    ------
    ArchiveError
        If an array holds Python objects, or the archive would exceed the 4 GiB of the plain zip format.
    """
    body, directory = io.BytesIO(), io.BytesIO()
    for name, array in arrays.items():
        content = _npy(name, np.asarray(array))
        compressor = zlib_ng.compressobj(_LEVEL, _DEFLATED, _RAW_DEFLATE, _MEMORY_LEVEL, _STRATEGY)
        packed = compressor.compress(content) + compressor.flush()
        member = f"{name}.npy".encode("ascii")
        offset = body.tell()
        if max(offset + len(packed), len(content)) > _ZIP_LIMIT - 2**16:
            raise ArchiveError(
                f"The array {name!r} with {len(content):,} bytes makes the archive larger than the 4 GiB that its "
                "format allows. Use fewer pixels or fewer context windows."
            )
        common = (0, _DEFLATED, 0, _DOS_DATE, zlib.crc32(content), len(packed), len(content), len(member), 0)
        body.write(_LOCAL_HEADER.pack(b"PK\x03\x04", _VERSION_NEEDED, *common))
        body.write(member)
        body.write(packed)
        directory.write(
            _CENTRAL_HEADER.pack(b"PK\x01\x02", _MADE_BY_UNIX, _VERSION_NEEDED, *common, 0, 0, 0, _PERMISSIONS, offset)
        )
        directory.write(member)
    end = _END.pack(b"PK\x05\x06", 0, 0, len(arrays), len(arrays), len(directory.getvalue()), body.tell(), 0)
    return body.getvalue() + directory.getvalue() + end


def decode_arrays(content: bytes, path: Path) -> dict[str, NDArray]:
    """Return the arrays of an ``.npz``.

    Nothing in it is executed, and no more memory is allocated than its size can account for.

    Parameters
    ----------
    content : bytes
        The whole file.
    path : Path
        Where it came from, for error messages.

    Returns
    -------
    dict of str to array
        By name, in the archive's order.

    Raises
    ------
    ArchiveError
        If it is no zip archive, is damaged, or holds anything but plain arrays.
    """
    arrays: dict[str, NDArray] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if sum(member.compress_size for member in members) > len(content):
                raise ArchiveError(f"{path}: its members overlap. The file was tampered with; make it again.")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if member.file_size > _DEFLATE_MAX_RATIO * member.compress_size:
                    raise ArchiveError(
                        f"{path}: {name!r} claims {member.file_size:,} bytes, more than its {member.compress_size:,} "
                        "compressed bytes can hold. The file is damaged or was tampered with; make it again."
                    )
                with archive.open(member) as stream:
                    arrays[name] = _array(stream.read(), name, path)
    except _DAMAGE as error:
        raise ArchiveError(
            f"{path} is not a whole .npz archive: {error}. Expected a zip of arrays as numpy writes it; the file is "
            "truncated, damaged or something else. Remove it and make it again."
        ) from error
    return arrays


def _npy(name: str, array: NDArray) -> bytes:
    if array.dtype.hasobject:
        raise ArchiveError(f"The array {name!r} holds Python objects (dtype {array.dtype}); expected numbers or text.")
    stream = io.BytesIO()
    little_endian = np.require(array, dtype=array.dtype.newbyteorder("<"), requirements="C")
    np.lib.format.write_array(stream, little_endian.reshape(array.shape), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _array(content: bytes, name: str, path: Path) -> NDArray:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ArchiveError(f"{path}: {name!r} has npy version {version}; expected (1, 0) or (2, 0).")
    shape, fortran_order, dtype = read_header(stream)
    if dtype.hasobject:
        raise ArchiveError(
            f"{path}: {name!r} holds pickled Python objects (dtype {dtype}); expected plain numbers or text. "
            "It was not opened, because unpickling can run code."
        )
    expected = dtype.itemsize * int(np.prod([int(extent) for extent in shape], dtype=object))
    found = len(content) - stream.tell()
    if expected != found or any(extent < 0 for extent in shape):
        raise ArchiveError(
            f"{path}: {name!r} claims shape {shape} of {dtype}, which is {expected:,} bytes, but {found:,} are there. "
            "The file is damaged; make it again."
        )
    flat = np.frombuffer(content, dtype=dtype, offset=stream.tell()) if found else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran_order else "C").copy()
