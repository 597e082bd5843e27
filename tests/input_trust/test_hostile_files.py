"""Simulations' files that claim what they do not hold, or lead elsewhere, on the real program."""

import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import polars as pl
import pytest
from batch_runs import SMALL, bases, message_of, run
from command_line import MadeDataset, made

from bind_core.config import DatasetConfig
from bind_core.dataset import DatasetError, FileReader
from bind_core.errors import CatalogueError, SnapshotError
from bind_core.halos import read_catalogue
from bind_core.parameters import read_parameter_table
from bind_core.particles import component_source, read_slices
from bind_core.snapshot import Component
from bind_core.suite import find_simulation
from bind_core.validation import validate_simulation
from storage.mock_suite import MockFormat, MockSuite, write_mock_suite

MANY = 10**12
Config = Callable[..., DatasetConfig]


@pytest.fixture
def suite(tmp_path: Path) -> MockSuite:
    options = {"simulations": 1, "particles_per_side": 8, "halos_per_simulation": 1}
    return write_mock_suite(tmp_path / "suite", formats=[MockFormat()], **options)


def snapshot_of(suite: MockSuite) -> Path:
    return next((suite.dmo_base / "SB35_0").rglob("*.hdf5"))


def catalogue_of(suite: MockSuite) -> Path:
    return next((suite.catalogue_base / "SB35_0").rglob("*.hdf5"))


def replaced(path: Path, name: str, count: int, **storage: Any) -> None:
    """Put a dataset in the place of another that declares some rows and holds none."""
    with h5py.File(path, "r+") as file:
        old = file[name]
        shape, dtype = (count, *old.shape[1:]), old.dtype
        del file[name]
        file.create_dataset(name, shape, dtype, **storage)


def claiming(path: Path, count: int, **storage: Any) -> None:
    """Let a snapshot claim a number of particles, in its header and by the shapes of its datasets."""
    replaced(path, "PartType1/Coordinates", count, **storage)
    with h5py.File(path, "r+") as file:
        header = file["Header"].attrs
        for name in ("NumPart_ThisFile", "NumPart_Total"):
            counts = np.asarray(header[name]).astype(np.uint64)
            counts[1] = count
            header[name] = counts
        header.pop("NumPart_Total_HighWord", None)


CHUNKED: dict[str, Any] = {"chunks": (1024, 3)}
PACKED: dict[str, Any] = {"chunks": (1024, 3), "compression": "gzip"}


@pytest.mark.parametrize("storage", [{}, CHUNKED, PACKED], ids=["contiguous", "chunked", "compressed"])
def test_particles_that_are_not_stored_are_refused_before_any_memory_is_taken(suite, config_of, storage) -> None:
    """A file of a few kilobytes that declares 10^12 particles is a finding, with hardly any memory touched."""
    path = snapshot_of(suite)
    claiming(path, MANY, **storage)
    assert path.stat().st_size < 1_000_000
    config = config_of(suite)
    tracemalloc.start()
    inspection = validate_simulation(
        find_simulation("SB35_0", config), config, read_parameter_table(suite.parameter_file)
    )
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()
    assert any(str(path) in finding.where and "holds" in finding.found for finding in inspection.findings)


def test_the_program_blocks_a_simulation_of_a_trillion_particles(suite, tmp_path: Path) -> None:
    """A run says which file claims what, makes nothing of that simulation, and ends in an orderly way."""
    claiming(snapshot_of(suite), MANY, **CHUNKED)
    done = run(*bases(suite), *SMALL, "--output_base_root", tmp_path / "out", "--total_sims", 1)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"snap\S*_090\.hdf5", done.stdout + done.stderr)
    assert not list((tmp_path / "out").rglob("*.npz"))


def as_if_written() -> h5py.h5p.PropDCID:
    """Return the properties of a dataset whose whole storage is set aside at once, without a byte being written."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    return properties


def claiming_terabytes(path: Path, **storage: Any) -> None:
    """Let a snapshot hold 10^12 particles by its header, its shapes, its storage and its size, and take no room."""
    try:
        claiming(path, MANY, dcpl=as_if_written(), **storage)
    except OSError as error:
        pytest.skip(f"this file system does not let us make a file of 12 TB: {error}")
    assert path.stat().st_size > 12 * MANY
    assert path.stat().st_blocks * 512 < 10_000_000


def test_a_file_of_terabytes_that_were_never_written_is_refused_at_once(suite, tmp_path: Path) -> None:
    """Where header, shapes, storage and size of a file agree on 10^12 particles and the disk has none, a run says so.

    It takes neither the time to read 12 TB of zeros nor memory for them, and leaves nothing.
    """
    path = snapshot_of(suite)
    claiming_terabytes(path)
    done = run(*bases(suite), *SMALL, "--output_base_root", tmp_path / "out", "--total_sims", 1)
    said = message_of(done, str(path), "12,000,000,000,000 bytes of numbers", "were ever written")
    assert "SB35_0" in said
    assert not list((tmp_path / "out").rglob("*.npz"))


def test_chunks_of_terabytes_that_were_never_written_are_refused(suite, config_of) -> None:
    """Chunks that all have their place in the file, and were never written, are holes too."""
    path = snapshot_of(suite)
    claiming_terabytes(path, chunks=(1 << 28, 3))
    with pytest.raises(SnapshotError, match="were ever written; the rest are holes"):
        component_source(Component.DMO, [path], config_of(suite))


def test_a_header_alone_that_claims_a_trillion_is_refused(suite, config_of) -> None:
    """Where the header counts 10^12 particles and the datasets hold a few hundred, both numbers are told."""
    path = snapshot_of(suite)
    with h5py.File(path, "r+") as file:
        counts = np.asarray(file["Header"].attrs["NumPart_ThisFile"]).astype(np.uint64)
        counts[1] = MANY
        file["Header"].attrs["NumPart_ThisFile"] = counts
    with pytest.raises(SnapshotError, match=r"has shape \(512, 3\).*asks for \(1000000000000, 3\)"):
        component_source(Component.DMO, [path], config_of(suite))


def test_a_catalogue_of_a_billion_groups_that_holds_none_is_refused(suite) -> None:
    """Groups that are declared and not stored are refused, with hardly any memory touched."""
    path = catalogue_of(suite)
    for name in ("GroupPos", "Group_M_Crit200", "Group_R_Crit200"):
        replaced(path, f"Group/{name}", 10**9, chunks=True)
    with h5py.File(path, "r+") as file:
        for name in ("Ngroups_ThisFile", "Ngroups_Total"):
            file["Header"].attrs[name] = np.int64(10**9)
    tracemalloc.start()
    with pytest.raises(CatalogueError, match=r"holds 0 of its [\d,]+ chunks"):
        read_catalogue([path])
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_positions_that_unpack_a_hundredfold_are_refused(tmp_path: Path, suite, config_of) -> None:
    """Few stored bytes cannot stand for gigabytes of positions, even where every chunk is there."""
    path = snapshot_of(suite)
    rows = 1 << 25
    claiming(path, 4 * rows, chunks=(rows, 3), compression="gzip", compression_opts=9)
    empty = np.zeros((1 << 22, 3), np.float32)
    with h5py.File(path, "r+") as file:
        dataset = file["PartType1/Coordinates"]
        packed = h5py.File(tmp_path / "one.hdf5", "w")
        small = packed.create_dataset("x", data=empty, chunks=empty.shape, compression="gzip")
        content = small.id.read_direct_chunk((0, 0))[1]
        for start in range(4):
            dataset.id.write_direct_chunk((start * rows, 0), content)
    with pytest.raises(SnapshotError, match=r"more than the [\d,]+ bytes that the file has of them can hold"):
        component_source(Component.DMO, [path], config_of(suite))


def test_chunks_far_larger_than_their_dataset_are_refused(suite, config_of) -> None:
    """A dataset of few rows in a chunk of gigabytes would take the memory of the chunk."""
    path = snapshot_of(suite)
    replaced(
        path, "PartType1/Coordinates", 512, chunks=(1 << 26, 3), maxshape=(None, 3), compression="gzip", shuffle=True
    )
    with pytest.raises(SnapshotError, match="has chunks of"):
        component_source(Component.DMO, [path], config_of(suite))


def linked(path: Path, how: str, other: Path) -> None:
    with h5py.File(path, "r+") as file:
        shape, dtype = file["PartType1/Coordinates"].shape, file["PartType1/Coordinates"].dtype
        del file["PartType1/Coordinates"]
        if how == "virtual":
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource(str(other), "PartType1/Coordinates", shape)
            file.create_virtual_dataset("PartType1/Coordinates", layout)
        elif how == "external storage":
            external = [(str(other), 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("PartType1/Coordinates", shape, dtype, external=external)
        elif how == "external link":
            file["PartType1/Coordinates"] = h5py.ExternalLink(str(other), "PartType1/Coordinates")
        elif how == "link to a link":
            file["elsewhere"] = h5py.ExternalLink(str(other), "/")
            file["PartType1/Coordinates"] = h5py.SoftLink("/elsewhere/PartType1/Coordinates")
        elif how == "circle":
            file["PartType1/Coordinates"] = h5py.SoftLink("/PartType1/Coordinates")
        elif how == "within":
            file.move("PartType1", "Kept")
            file["PartType1"] = h5py.SoftLink("Kept")
            with h5py.File(other, "r") as source:
                source.copy("PartType1/Coordinates", file["Kept"])


@pytest.mark.parametrize(
    ("how", "part"),
    [
        ("virtual", "in other files"),
        ("external storage", "in other files"),
        ("external link", "a link to another file"),
        ("link to a link", "a link to another file"),
        ("circle", "leads to no end"),
    ],
)
def test_data_in_other_files_is_not_followed(suite, config_of, tmp_path: Path, how: str, part: str) -> None:
    """What is read of a file lies in it: a view of another file would not be seen to change."""
    path, other = snapshot_of(suite), tmp_path / "other.hdf5"
    shutil.copy(path, other)
    linked(path, how, other)
    with pytest.raises(SnapshotError, match=part) as caught:
        component_source(Component.DMO, [path], config_of(suite))
    assert str(path) in str(caught.value)


def test_links_within_a_file_are_followed(suite, config_of, tmp_path: Path) -> None:
    """A soft link to a group of the same file is as good as the group."""
    path, other = snapshot_of(suite), tmp_path / "other.hdf5"
    shutil.copy(path, other)
    linked(path, "within", other)
    source = component_source(Component.DMO, [path], config_of(suite))
    assert sum(len(part.positions) for part in read_slices(source, source.pieces)) == 512


def test_a_filter_without_its_parameters_is_not_run(suite, config_of) -> None:
    """Blosc without parameters would take the process down; filters that are not known are not run at all."""
    path = snapshot_of(suite)
    with h5py.File(path, "r+") as file:
        values = file["PartType1/Coordinates"][...]
        del file["PartType1/Coordinates"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(values.shape)
        properties.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2, 4, values.nbytes, 5, 2, 5))
        space, kind = h5py.h5s.create_simple(values.shape), h5py.h5t.py_create(values.dtype)
        h5py.h5d.create(file["PartType1"].id, b"Coordinates", kind, space, properties)
        file["PartType1/Coordinates"][...] = values
    read = component_source(Component.DMO, [path], config_of(suite))
    assert read.count == 512
    content = path.read_bytes()
    filters = (32001).to_bytes(2, "little")
    places = [match.start() for match in re.finditer(re.escape(filters), content)]
    assert places
    for place in places:
        spoilt = bytearray(content)
        spoilt[place : place + 2] = (32013).to_bytes(2, "little")
        path.write_bytes(bytes(spoilt))
        with pytest.raises(SnapshotError, match="filter 32013"):
            component_source(Component.DMO, [path], config_of(suite))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> MadeDataset:
    return made(tmp_path_factory.mktemp("made"), simulations=1)


@pytest.mark.parametrize("path", ["../../secret.npz", "/etc/passwd", "train/../../x.npz", "a\0b", None])
def test_rows_lead_no_training_run_out_of_its_data_set(dataset: MadeDataset, path: str | None) -> None:
    """Rows that came with a data set name files below it, and nothing else."""
    rows = pl.DataFrame({"path": [path], "split": ["train"]}, schema={"path": pl.String, "split": pl.String})
    with pytest.raises(DatasetError, match="expected one below that folder"):
        FileReader(dataset.config.output_root, rows)
