"""Inputs made hostile at random: bytes, HDF5 structure and text, always the same for the same generator."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Random = np.random.Generator

_NUMBERS = (0, 1, 2, 0x7F, 0xFF, 2**15, 2**31 - 1, 2**32 - 1, 10**12, 2**48, 2**63 - 1, 2**64 - 1)


def chosen(random: Random, options: Sequence[Any]) -> Any:
    """Return one of several things, as it is: numpy would turn it into an array."""
    return options[int(random.integers(len(options)))]


def mutated_bytes(content: bytes, random: Random, other: bytes = b"") -> bytes:
    """Flip, cut, overwrite, move or replace some bytes, one to four times."""
    spoilt = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        if not spoilt:
            break
        at = int(random.integers(len(spoilt)))
        length = int(random.integers(1, 65))
        match int(random.integers(8)):
            case 0:
                del spoilt[at:]
            case 1:
                spoilt[at] ^= 1 << int(random.integers(8))
            case 2:
                spoilt[at : at + length] = random.bytes(len(spoilt[at : at + length]))
            case 3:
                spoilt[at : at + length] = bytes(len(spoilt[at : at + length]))
            case 4:
                width = int(chosen(random, (1, 2, 4, 8)))
                number = chosen(random, _NUMBERS) % 256**width
                spoilt[at : at + width] = number.to_bytes(width, "little")
            case 5:
                start = int(random.integers(len(spoilt)))
                spoilt[at : at + length] = spoilt[start : start + length]
            case 6:
                source = other or content
                start = int(random.integers(len(source)))
                spoilt[at : at + length] = source[start : start + length]
            case 7:
                del spoilt[at : at + length]
    return bytes(spoilt)


def mutated_hdf5(path: Path, random: Random, elsewhere: Path) -> None:
    """Change attributes, datasets, links and values of an HDF5 file, or its bytes, or both.

    Parameters
    ----------
    path : Path
        Changed in place.
    random : Random
        Decides what is changed.
    elsewhere : Path
        A sound file of the same kind, which links and external storage lead to.
    """
    structure = random.random() < 0.6
    if structure:
        with contextlib.suppress(Exception), h5py.File(path, "r+") as file:
            changes = [chosen(random, _CHANGES) for _ in range(int(random.integers(1, 4)))]
            # Values first: the library itself dies of writing into some of the datasets that others put there.
            for change in sorted(changes, key=lambda change: change is not _replace_values):
                change(file, random, elsewhere)
    if not structure or random.random() < 0.2:
        path.write_bytes(mutated_bytes(path.read_bytes(), random, elsewhere.read_bytes()))


def _attribute_value(file: h5py.File, random: Random) -> Any:
    values: tuple[Callable[[], Any], ...] = (
        lambda: np.nan,
        lambda: -np.inf,
        lambda: -1,
        lambda: 0,
        lambda: np.longdouble("1e4000"),
        lambda: 1e308,
        lambda: 5e-324,
        lambda: np.uint64(2**64 - 1),
        lambda: np.int64(-(2**63)),
        lambda: [10**12] * 6,
        lambda: [1e300] * 6,
        lambda: np.zeros((3, 2)),
        lambda: np.zeros(0),
        lambda: np.arange(6),
        lambda: np.full(7, 3, np.uint8),
        lambda: h5py.Empty("f8"),
        lambda: "forty-two",
        lambda: np.bytes_("42"),
        lambda: file.ref,
        lambda: np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        lambda: np.array([True, False]),
        lambda: 1 + 2j,
        lambda: np.float16(50),
    )
    return chosen(random, values)()


def _change_attribute(file: h5py.File, random: Random, _elsewhere: Path) -> None:
    group = file[chosen(random, [name for name in ("Header", "Cosmology", "Parameters") if name in file])]
    name = chosen(random, sorted(group.attrs))
    if random.random() < 0.15:
        del group.attrs[name]
    elif random.random() < 0.3:
        value = np.atleast_1d(group.attrs[name]).copy()
        value[int(random.integers(value.size))] = chosen(random, (0, 1, 7, 100, 2**31 - 1))
        group.attrs[name] = value
    else:
        group.attrs[name] = _attribute_value(file, random)


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def _replace_dataset(file: h5py.File, random: Random, elsewhere: Path) -> None:
    name = chosen(random, _datasets(file))
    before = file[name]
    shape, dtype, values = before.shape, before.dtype, before[...]
    del file[name]
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource(str(chosen(random, (elsewhere, elsewhere.with_name("gone.hdf5")))), name, shape)
    compound = np.zeros(shape[:1], dtype=[("x", "f4"), ("y", "f8")])
    replacements: tuple[Callable[[], Any], ...] = (
        lambda: file.create_dataset(name, shape, dtype, chunks=True),
        lambda: file.create_dataset(name, (10**12, *shape[1:]), dtype, chunks=(1024, *shape[1:])),
        lambda: file.create_dataset(name, (10**12, *shape[1:]), dtype),
        lambda: file.create_dataset(name, data=values[: len(values) // 2]),
        lambda: file.create_dataset(name, data=values.ravel()),
        lambda: file.create_dataset(name, data=values.astype(chosen(random, ("i4", "f2", ">f4", ">f8", "g", "?")))),
        lambda: file.create_dataset(name, data=values.astype("S8")),
        lambda: file.create_dataset(name, shape[:1], h5py.string_dtype()),
        lambda: file.create_dataset(name, shape[:1], h5py.vlen_dtype(np.float32)),
        lambda: file.create_dataset(name, shape, h5py.ref_dtype),
        lambda: file.create_dataset(name, data=compound),
        lambda: file.create_dataset(name, data=np.float64(1)),
        lambda: file.create_dataset(name, data=h5py.Empty("f4")),
        lambda: file.create_dataset(name, shape, dtype, external=[(str(elsewhere), 0, h5py.h5f.UNLIMITED)]),
        lambda: file.create_virtual_dataset(name, layout),
        lambda: file.create_group(name),
        lambda: file.create_dataset(
            name, shape, dtype, maxshape=(None, *shape[1:]), chunks=(1 << 25, *shape[1:]), compression="gzip"
        ),
        lambda: file.create_dataset(name, data=values, chunks=True, fletcher32=True, scaleoffset=3),
    )
    chosen(random, replacements)()


def _replace_link(file: h5py.File, random: Random, elsewhere: Path) -> None:
    name = chosen(random, [*_datasets(file), *file])
    item = file[name]
    if random.random() < 0.2:
        del file[name]
        return
    del file[name]
    links: tuple[Callable[[], Any], ...] = (
        lambda: h5py.SoftLink("/nowhere"),
        lambda: h5py.SoftLink(f"/{name}"),
        lambda: h5py.SoftLink("/"),
        lambda: h5py.SoftLink("/Header"),
        lambda: h5py.ExternalLink(str(elsewhere), name),
        lambda: h5py.ExternalLink(str(elsewhere.with_name("gone.hdf5")), name),
        lambda: h5py.ExternalLink("/dev/zero", name),
        lambda: np.dtype("f8"),
        lambda: file.create_group(None),
        lambda: item,
    )
    file[name] = chosen(random, links)()


def _replace_values(file: h5py.File, random: Random, _elsewhere: Path) -> None:
    dataset = file[chosen(random, _datasets(file))]
    values = dataset[...].reshape(-1)
    if values.size:
        some = random.integers(values.size, size=int(random.integers(1, 9)))
        values[some] = chosen(random, (np.nan, np.inf, -1.0, 0.0, 1e38, -1e38, 1e-40))
        dataset[...] = values.reshape(dataset.shape)


def _splice(file: h5py.File, random: Random, elsewhere: Path) -> None:
    names = _datasets(file)
    with h5py.File(elsewhere, "r") as other:
        source, target = chosen(random, _datasets(other)), chosen(random, names)
        del file[target]
        other.copy(source, file, target)


_CHANGES = (
    _change_attribute,
    _change_attribute,
    _replace_dataset,
    _replace_dataset,
    _replace_link,
    _replace_values,
    _splice,
)
