"""Named arrays in one ``.npz``: always the same bytes for the same arrays.

`numpy.savez` stamps the time into the archive and compresses slowly. The archive is therefore written out here; the
format is the same, and numpy reads it. `bind_core.archives` reads those of others.
"""

import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from zlib_ng import zlib_ng

from bind_core.archives import ArchiveError, decode_arrays

__all__ = ["ArchiveError", "decode_arrays", "encode_arrays"]

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


def _npy(name: str, array: NDArray) -> bytes:
    if array.dtype.hasobject:
        raise ArchiveError(f"The array {name!r} holds Python objects (dtype {array.dtype}); expected numbers or text.")
    stream = io.BytesIO()
    little_endian = np.require(array, dtype=array.dtype.newbyteorder("<"), requirements="C")
    np.lib.format.write_array(stream, little_endian.reshape(array.shape), version=(1, 0), allow_pickle=False)
    return stream.getvalue()
