"""Reading a mock suite back with h5py alone, for tests."""

import hashlib

import h5py
import hdf5plugin  # noqa: F401
import numpy as np

from storage.mock_suite import CatalogueLayout, Compression, MockFormat, SnapshotLayout, write_mock_suite

SIDE = 16
BOX = 50_000.0  # ckpc/h
CHUNKED = MockFormat(
    dmo_layout=SnapshotLayout.CHUNKED_NEW,
    hydro_layout=SnapshotLayout.CHUNKED_NEW,
    catalogue_layout=CatalogueLayout.CHUNKED_NEW,
    hydro_compression=Compression.GZIP,
)


def write(root, **options):
    return write_mock_suite(root, **{"simulations": 1, "particles_per_side": SIDE, "formats": [CHUNKED]} | options)


def files_below(folder):
    """Paths below a folder in chunk order, hidden ones left out."""
    found = (path for path in folder.rglob("*.hdf5") if not path.name.startswith("."))
    return sorted(found, key=lambda path: (len(path.name), path.name))


def digests(root):
    """Digest of each file of a suite, by its path; the suite's own records left out."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if ".mock" not in path.relative_to(root).parts
    }


def attribute(path, name):
    with h5py.File(path) as file:
        for group in ("Header", "Parameters"):
            if group in file and name in file[group].attrs:
                return file[group].attrs[name]
    raise KeyError(name)


def joined(files, name):
    """Return a dataset over all chunks that have it."""
    parts = []
    for path in files:
        with h5py.File(path) as file:
            if name in file:
                parts.append(file[name][()])
    return np.concatenate(parts) if parts else None


def roles(suite, name="SB35_0"):
    return tuple(files_below(base / name) for base in (suite.dmo_base, suite.hydro_base, suite.catalogue_base))


def correlation(one, other, cells=16):
    meshes = []
    for positions in (one, other):
        index = np.floor(positions.astype(float) / BOX * cells).astype(int) % cells
        meshes.append(np.bincount(np.ravel_multi_index(tuple(index.T), (cells,) * 3), minlength=cells**3))
    return np.corrcoef(*meshes)[0, 1]


def table_of(suite):
    """Rows of the parameter table, each a mapping of column to text."""
    header, *lines = suite.parameter_file.read_text().splitlines()
    return header.split(), [dict(zip(header.split(), line.split(), strict=True)) for line in lines]
