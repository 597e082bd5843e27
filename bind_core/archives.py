"""Named arrays in one ``.npz``, read without trust.

`numpy.load` allocates whatever size an array claims to have, and lets through the errors of every library beneath it.
The standard library reads the archive's directory; zlib-ng unpacks its members, in two thirds of the time.
"""

import io
import reprlib
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

from bind_core.errors import BindDataError

_LONGEST_NAME = 200
_LONGEST_REASON = 300
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DEFLATE_MAX_RATIO = 1040
"""Deflate stores 258 bytes in two bits at the best, 1032 to 1; the rest allows for small members."""
_LOCAL_HEADER = struct.Struct("<4s22x2H")
"""Signature, length of the name and of what follows it; the rest is in the archive's directory too."""
_LOCAL_SIGNATURE = b"PK\3\4"
_NAME_IS_UTF8 = 0x800
_ENCRYPTED_OR_PATCHED = 0x61

# What damaged archives and array headers make the standard library and numpy raise (an unknown compression is a
# RuntimeError too).
_DAMAGE: tuple[type[Exception], ...] = (  # type: ignore[assignment]  # the stub of zlib-ng has its error as an instance
    zipfile.BadZipFile,
    zlib.error,
    zlib_ng.error,
    struct.error,
    tokenize.TokenError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class ArchiveError(BindDataError):
    """An ``.npz`` that cannot be read or made."""


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
                if len(member.filename) > _LONGEST_NAME:
                    raise ArchiveError(
                        f"{path}: a member's name has {len(member.filename):,} characters. Make it again."
                    )
                name = member.filename.removesuffix(".npy")
                if member.compress_type not in _COMPRESSIONS:
                    raise ArchiveError(
                        f"{path}: {name!r} is compressed by method {member.compress_type}, whose results have no "
                        "bounds; expected deflate or none, as numpy writes. Make the file again."
                    )
                if member.file_size > _DEFLATE_MAX_RATIO * member.compress_size:
                    raise ArchiveError(
                        f"{path}: {name!r} claims {member.file_size:,} bytes, more than its {member.compress_size:,} "
                        "compressed bytes can hold. The file is damaged or was tampered with; make it again."
                    )
                arrays[name] = _array(_unpacked(member, content), name, path)
    except _DAMAGE as error:
        raise ArchiveError(
            f"{path} is not a whole .npz archive: {str(error)[:_LONGEST_REASON]}. Expected a zip of arrays as numpy "
            "writes it; the file is truncated, damaged or something else. Remove it and make it again."
        ) from error
    return arrays


def _unpacked(member: zipfile.ZipInfo, archive: bytes) -> bytes:
    signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(archive, member.header_offset)
    start = member.header_offset + _LOCAL_HEADER.size
    name = archive[start : start + name_length].decode("utf-8" if member.flag_bits & _NAME_IS_UTF8 else "cp437")
    if signature != _LOCAL_SIGNATURE or name != member.orig_filename or member.flag_bits & _ENCRYPTED_OR_PATCHED:
        raise zipfile.BadZipFile(f"the header of {member.filename!r} is not as the directory says, or it is encrypted")
    start += name_length + extra_length
    packed = memoryview(archive)[start : start + member.compress_size]
    if member.compress_type == zipfile.ZIP_STORED:
        content = packed.tobytes()
    else:  # one byte more than there should be tells whether there are more
        content = zlib_ng.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.file_size + 1)
    if len(content) != member.file_size or zlib_ng.crc32(content) != member.CRC:
        raise zipfile.BadZipFile(f"{member.filename!r} has another length or checksum than the directory says")
    return content


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
            f"{path}: {name!r} holds pickled Python objects (dtype {reprlib.repr(dtype)}); expected plain numbers or "
            "text. It was not opened, because unpickling can run code."
        )
    expected = dtype.itemsize * int(np.prod([int(extent) for extent in shape], dtype=object))
    found = len(content) - stream.tell()
    if expected != found or any(extent < 0 for extent in shape):
        raise ArchiveError(
            f"{path}: {name!r} claims shape {reprlib.repr(shape)} of {reprlib.repr(dtype)}, which is "
            f"{reprlib.repr(expected)} bytes, but {found:,} are there. The file is damaged; make it again."
        )
    flat = np.frombuffer(content, dtype=dtype, offset=stream.tell()) if found else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran_order else "C").copy()
