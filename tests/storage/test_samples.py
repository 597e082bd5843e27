import dataclasses
import hashlib
import io
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bind_core.sample import Sample
from storage.archives import ArchiveError, decode_arrays, encode_arrays
from storage.samples import SampleError, decode_sample, encode_sample, read_sample, write_sample

KEYS = {
    "condition": ((16, 16), np.float32),
    "target": ((3, 16, 16), np.float32),
    "large_scale": ((3, 16, 16), np.float32),
    "params": ((5,), np.float64),
    "halo_mass": ((), np.float64),
    "halo_center": ((3,), np.float64),
    "rotation": ((3, 3), np.float64),
}

Make = Callable[..., Sample]
WHERE = Path("sample.npz")


def test_plain_numpy_reads_the_contract(tmp_path: Path, make_sample: Make) -> None:
    """numpy.load without pickle finds exactly the contract's keys, shapes and dtypes, with the values written."""
    sample = make_sample()
    write_sample(tmp_path / "s.npz", sample)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as found:
        assert {key: (found[key].shape, found[key].dtype) for key in found.files} == KEYS
        for key, values in sample.arrays().items():
            np.testing.assert_array_equal(found[key], values)
    assert zipfile.ZipFile(tmp_path / "s.npz").testzip() is None


def test_what_was_written_is_read(tmp_path: Path, make_sample: Make, same: Callable[..., bool]) -> None:
    """Reading gives back the same bits, whoever wrote them: this project or numpy, compressed or not."""
    sample = make_sample()
    write_sample(tmp_path / "ours.npz", sample)
    np.savez(tmp_path / "plain.npz", **sample.arrays())
    np.savez_compressed(tmp_path / "compressed.npz", **sample.arrays())
    for path in tmp_path.iterdir():
        assert same(read_sample(path), sample)


def test_size_and_digest_are_those_of_the_file(tmp_path: Path, make_sample: Make) -> None:
    """What write_sample reports is what lies on disk."""
    written = write_sample(tmp_path / "s.npz", make_sample())
    content = (tmp_path / "s.npz").read_bytes()
    assert (written.bytes, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_same_arrays_are_the_same_bytes(make_sample: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the time nor the arrays' layout in memory shows in the bytes."""
    sample = make_sample()
    first = encode_sample(sample)
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    rearranged = dataclasses.replace(
        sample,
        condition=np.asfortranarray(sample.condition),
        target=sample.target.astype(">f4"),
        large_scale=np.repeat(sample.large_scale, 2, axis=2)[:, :, ::2],
    )
    assert encode_sample(rearranged) == first
    assert encode_sample(make_sample(1)) != first


def test_the_bytes_do_not_depend_on_the_compression_library(make_sample: Make) -> None:
    """The standard library's zlib, told to match runs only, packs the arrays into the same bytes."""
    for member in zipfile.ZipFile(io.BytesIO(encoded := encode_sample(make_sample(npix=64)))).infolist():
        start = member.header_offset + 30 + len(member.filename)
        packed = encoded[start : start + member.compress_size]
        content = zlib.decompress(packed, wbits=-15)
        reference = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
        assert packed == reference.compress(content) + reference.flush()


def test_empty_maps_take_hardly_any_space(make_sample: Make) -> None:
    """A map without stars costs less than 1 % of its uncompressed size."""
    with_stars, without = (len(encode_sample(make_sample(npix=128, stars=stars))) for stars in (True, False))
    empty = encode_arrays({"stars": np.zeros((128, 128), np.float32)})
    assert without < with_stars
    assert len(empty) < 0.01 * 128 * 128 * 4


def _with(sample: Sample, **changes: Any) -> Sample:
    return dataclasses.replace(sample, **changes)


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("condition", np.zeros((16, 8)), r"'condition' has shape \(16, 8\); expected \(16, 16\)"),
        ("target", np.zeros((2, 16, 16)), r"'target' has shape \(2, 16, 16\); expected \(3, 16, 16\)"),
        ("large_scale", np.zeros((3, 8, 8)), r"'large_scale' has shape \(3, 8, 8\); expected \(3, 16, 16\)"),
        ("halo_center", np.zeros(2), r"'halo_center' has shape \(2,\); expected \(3\)"),
        ("condition", np.full((16, 16), np.nan), "'condition' holds 256 values that are not finite"),
        ("target", np.full((3, 16, 16), -1.0), "'target' holds the negative mass -1.0"),
        ("rotation", np.diag([1.0, 1.0, -1.0]), "determinant is -1"),
        ("rotation", np.ones((3, 3)), "no rotation"),
    ],
)
def test_what_breaks_the_contract_is_not_written(
    tmp_path: Path, make_sample: Make, key: str, values: np.ndarray, message: str
) -> None:
    """Wrong shapes, values that are no mass and matrices that are no rotation are named, and nothing is written."""
    path = tmp_path / "s.npz"
    with pytest.raises(SampleError, match=message) as caught:
        write_sample(path, _with(make_sample(), **{key: values}))
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A sample that is not there is an error of ours that names the file."""
    with pytest.raises(SampleError, match=r"gone\.npz"):
        read_sample(tmp_path / "gone.npz")


def test_a_missing_key_is_named(make_sample: Make) -> None:
    """An archive that lacks an array says which, and which there are."""
    arrays = make_sample().arrays()
    del arrays["large_scale"]
    with pytest.raises(SampleError, match=r"no array 'large_scale'.*found condition, target, params"):
        decode_sample(encode_arrays(arrays), WHERE)


def test_a_wrong_dtype_is_named(make_sample: Make) -> None:
    """A map in double precision is refused with both dtypes."""
    arrays = make_sample().arrays()
    with pytest.raises(SampleError, match="'condition' has dtype float64; expected float32"):
        decode_sample(encode_arrays(arrays | {"condition": arrays["condition"].astype(np.float64)}), WHERE)


class _Trap:
    opened = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (_spring, ())


def _spring() -> None:
    _Trap.opened = True


def test_a_pickle_is_not_opened(make_sample: Make) -> None:
    """An archive with a pickled object is refused before the pickle can run any code."""
    stream = io.BytesIO()
    np.savez(stream, **(make_sample().arrays() | {"params": np.array([_Trap()], dtype=object)}))
    assert pickle.dumps(_Trap())
    with pytest.raises(SampleError, match="pickled Python objects"):
        decode_sample(stream.getvalue(), WHERE)
    assert not _Trap.opened


def _npz(header: str, data: bytes = b"", compression: int = zipfile.ZIP_STORED) -> bytes:
    text = header.encode() + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr("condition.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    return stream.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': '|V1000000000000', 'fortran_order': False, 'shape': (1,)}",
    ],
)
def test_an_absurd_shape_is_refused_without_allocating_it(header: str) -> None:
    """An array that claims another size than its bytes have is refused, with hardly any memory touched."""
    tracemalloc.start()
    with pytest.raises(ArchiveError):
        decode_arrays(_npz(header, b"\0" * 8), WHERE)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_overlapping_members_are_refused() -> None:
    """A zip whose directory lists the same bytes many times over is refused before they are unpacked."""
    once = encode_arrays({"a": np.zeros(1_000_000)})
    start = once.index(b"PK\x01\x02")
    entry, end = once[start:-22], once[-22:]
    copies = 1000
    bomb = once[:start] + entry * copies + end[:8] + struct.pack("<HHL", copies, copies, copies * len(entry)) + end[16:]
    with pytest.raises(ArchiveError):
        decode_arrays(bomb, WHERE)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_an_error_or_still_right(data: st.DataObject) -> None:
    """Cut off anywhere, or with any byte changed, a sample is refused or comes back unharmed; nothing else happens."""
    whole = _ENCODED
    if data.draw(st.booleans(), label="truncate"):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        position = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:position] + bytes([whole[position] ^ data.draw(st.integers(1, 255))]) + whole[position + 1 :]
    try:
        found = decode_sample(damaged, WHERE)
    except SampleError as error:
        assert "sample.npz" in str(error)
    else:
        assert encode_sample(found) == whole


@given(
    hnp.arrays(
        dtype=st.sampled_from([np.dtype(text) for text in ("<f4", "<f8", "<i4", "|u1", "|b1", "<U3")]),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    )
)
@settings(deadline=None)
def test_any_plain_array_survives(array: np.ndarray) -> None:
    """Arrays of any plain dtype and shape, empty ones included, come back equal, by our reader and by numpy's."""
    content = encode_arrays({"x": array})
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        for found in (decode_arrays(content, WHERE)["x"], archive["x"]):
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(found, array)


def _encoded() -> bytes:
    rng = np.random.default_rng(1)
    maps = rng.exponential(1e10, (7, 4, 4)).astype(np.float32)
    return encode_sample(
        Sample(maps[0], maps[1:4], maps[4:], rng.random(2), 2e13, rng.uniform(0, 50, 3), np.eye(3)[[1, 2, 0]])
    )


_ENCODED = _encoded()
