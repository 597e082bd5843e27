"""A version's samples packed into few large files, for training on file systems that many small ones starve.

As shards, a pack is a Zarr v3 group with one array per key of a sample, in the manifest's order, along whose first
axis the samples lie; as tar files, it is what WebDataset streams. Either way the rows of the manifest lie beside it in
the same order, and the digest of every file. A pack is there when all of it is: until then it grows in a folder of its
own, where a killed run is taken up again after the last file that was flushed to disk.
"""

import hashlib
import io
import itertools
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.array_spec import ArrayConfigParams

from bind_core.dataset import VERSION_KEY
from bind_core.errors import BindDataError
from bind_core.records import RecordError, record_from_json
from bind_core.sample import CHANNELS_KEY, TARGET_CHANNELS
from storage.faults import Step, passing
from storage.files import (
    flush_file,
    flush_folder,
    make_folder,
    one_at_a_time,
    remove_stale_temporaries,
    sha256_of,
    write_bytes,
)
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.recorded import RecordedSample, map_recorded
from storage.samples import CONTRACT
from storage.versions import DatasetVersion, resolve_version

SAMPLES_PER_FILE = 128
"""Samples in one shard or tar file: about 25 MB of each of the two largest arrays."""
ARRAYS = "samples.zarr"
"""The Zarr group in a pack's folder."""
ROWS_FILE = "samples.parquet"
CHECKSUMS_FILE = "checksums.json"
IDENTITY_FILE = "pack.json"

_DONE_FILE = "done.json"
_UNFINISHED = ".unfinished"
_PARTIAL = "*.partial"
"""Files that zarr was writing when it was killed."""
# Bytes of floats that are alike lie side by side, which halves what compression takes and leaves.
_COMPRESSION = (BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"), Crc32cCodec())
_STORED_WHOLE: ArrayConfigParams = {"write_empty_chunks": True}
"""Or a chunk of zeros, such as stars that never formed, would not be there."""


class PackError(BindDataError):
    """A pack that cannot be made, or that is not what it should be."""


class PackFormat(StrEnum):
    """What a pack consists of."""

    ZARR = "zarr"
    """A Zarr v3 group of sharded arrays: any sample at any time."""
    TAR = "tar"
    """Tar files of samples, as WebDataset streams them one after the other."""


@dataclass(frozen=True)
class PackIdentity:
    """What a pack holds; two packs of one identity hold the same."""

    set_name: str
    version: int
    """Version of the table ``samples``."""
    config_digest: str
    where: str
    """Condition in SQL that its samples fulfil; empty for all."""
    format: PackFormat
    n_samples: int
    rows_digest: str
    """SHA-256 of the samples' ids and digests, in order."""


@dataclass(frozen=True)
class Pack:
    """A pack that is there."""

    folder: Path
    identity: PackIdentity
    files: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        """Return the pack as plain values, for JSON."""
        return {"folder": str(self.folder), "files": self.files, "bytes": self.bytes, **asdict(self.identity)}


def pack(
    layout: DatasetLayout,
    version: DatasetVersion,
    folder: Path | None = None,
    *,
    where: str = "",
    pack_format: PackFormat = PackFormat.ZARR,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Pack:
    """Pack the samples of a version, each held against its digest in the manifest as it is read.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    version : DatasetVersion
        Which of its versions.
    folder : Path, optional
        The pack's folder, which is made; by default one in the data set that is named after the version, the
        condition and the format.
    where : str
        Condition on a row of the table ``samples``, in polars' SQL, e.g. ``halo_mass > 3e13``; by default all.
    pack_format : PackFormat
        Shards or tar files.
    threads : int
        Threads that read.
    progress : callable, optional
        Called with the number of samples done and the number of all.

    Returns
    -------
    Pack
        What was made, or what was there already.

    Raises
    ------
    PackError
        If the condition is none, no sample fulfils it, they are of several configurations or shapes, or the folder
        holds something else.
    RecordedSampleError, SampleError
        If a sample's file is not what was recorded.
    StorageFullError
        If the disk or the quota is full.
    """
    rows = _rows(layout, version, where)
    identity = _identity(layout, version, where, pack_format, rows)
    folder = folder or layout.packs_folder / _name(identity)
    lock = folder.with_name(f".{folder.name}.lock")
    with one_at_a_time(lock):
        if not folder.exists():
            _make(layout, folder, identity, rows, threads, progress)
        lock.unlink(missing_ok=True)
    return _existing(folder, identity)


def _make(
    layout: DatasetLayout,
    folder: Path,
    identity: PackIdentity,
    rows: pl.DataFrame,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    unfinished = folder.with_name(f".{folder.name}{_UNFINISHED}")
    done = _files_done(unfinished, identity)
    writer: _Writer = (_Shards if identity.format is PackFormat.ZARR else _Tars)(unfinished, rows)
    # Threads read the next file's samples while this one's are compressed and flushed.
    samples = map_recorded(layout, rows[done * SAMPLES_PER_FILE :], writer.prepare, threads)
    for number in range(done, -(-rows.height // SAMPLES_PER_FILE)):
        some = list(itertools.islice(samples, SAMPLES_PER_FILE))
        written = writer.write(number, some)
        for path in written:
            flush_file(path)
            flush_folder(path.parent)
        passing(Step.WITHIN_PACKING)
        write_bytes(unfinished / _DONE_FILE, json.dumps(number + 1).encode())
        if progress is not None:
            progress(number * SAMPLES_PER_FILE + len(some), rows.height)
    _finish(unfinished, folder, rows, identity.version)


def verify_pack(layout: DatasetLayout, folder: Path) -> list[str]:
    """Hold a pack against its checksums and against the manifest.

    Parameters
    ----------
    layout : DatasetLayout
        The data set that it was made from.
    folder : Path
        The pack.

    Returns
    -------
    list of str
        What is wrong with it; nothing if it is sound.

    Raises
    ------
    PackError
        If the folder is no pack.
    """
    identity = read_identity(folder)
    try:
        expected = record_from_json(dict[str, str], (folder / CHECKSUMS_FILE).read_bytes(), CHECKSUMS_FILE)
    except (OSError, RecordError) as error:
        raise _no_pack(folder, error) from error
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of the pack" for name in found if name not in expected]
    problems += [
        f"{name} is damaged: expected SHA-256 {expected[name]}, found {digest}"
        for name, path in found.items()
        if name in expected and (digest := sha256_of(path)) != expected[name]
    ]
    recorded = _rows(layout, resolve_version(layout, identity.version), identity.where)
    if _rows_digest(recorded) != identity.rows_digest:
        problems.append(
            f"it does not hold the samples of version {identity.version} of {layout.root}: {identity.n_samples:,} are "
            f"in it, {recorded.height:,} in the manifest"
        )
    return problems


def read_identity(folder: Path) -> PackIdentity:
    """Return what a pack says that it holds.

    Raises
    ------
    PackError
        If the folder is no pack.
    """
    try:
        return record_from_json(PackIdentity, (folder / IDENTITY_FILE).read_bytes(), IDENTITY_FILE)
    except (OSError, RecordError) as error:
        raise _no_pack(folder, error) from error


class _Writer(Protocol):
    """Writes the files of a pack."""

    def prepare(self, sample: RecordedSample) -> RecordedSample:
        """Do with a sample, in a thread, what does not depend on others."""

    def write(self, number: int, samples: Sequence[RecordedSample]) -> list[Path]:
        """Write the samples of one shard or tar file; return the files that were written."""


class _Shards:
    """Writes one shard of every array at a time."""

    def __init__(self, folder: Path, rows: pl.DataFrame) -> None:
        self.folder = folder / ARRAYS
        self.n_samples = rows.height

    def prepare(self, sample: RecordedSample) -> RecordedSample:
        _ = sample.sample  # decoded here, in the thread
        return sample

    def write(self, number: int, samples: Sequence[RecordedSample]) -> list[Path]:
        zarr.open_group(self.folder, mode="a", zarr_format=3)
        written = [self.folder / "zarr.json"]
        start = number * SAMPLES_PER_FILE
        first = samples[0].sample
        arrays = first.arrays()
        for key in CONTRACT:
            example = arrays[key]
            array = self._array(key, example, first.target_channels)
            array[start : start + len(samples)] = _stacked(key, array.shape[1:], samples)
            shard = Path("c", str(number), *["0"] * example.ndim)
            written += [self.folder / key / "zarr.json", self.folder / key / shard]
        return written

    def _array(self, key: str, example: np.ndarray, channels: tuple[str, ...]) -> "zarr.Array[Any]":
        folder = self.folder / key
        if folder.exists():
            return zarr.open_array(folder, mode="r+", config=_STORED_WHOLE)
        contract = CONTRACT[key]
        attributes: dict[str, Any] = {"description": contract.description, "unit": contract.unit}
        if key == "target" and channels != TARGET_CHANNELS:  # further ones have units of their own
            attributes |= {CHANNELS_KEY: list(channels)}
        return zarr.create_array(
            folder,
            shape=(self.n_samples, *example.shape),
            dtype=example.dtype,
            chunks=(1, *example.shape),
            shards=(SAMPLES_PER_FILE, *example.shape),
            compressors=_COMPRESSION,
            attributes=attributes,
            config=_STORED_WHOLE,
        )


class _Tars:
    """Writes one tar file at a time, the same bytes for the same samples."""

    def __init__(self, folder: Path, rows: pl.DataFrame) -> None:
        self.folder = folder
        self.rows = {row["sample_id"]: row for row in rows.iter_rows(named=True)}

    def prepare(self, sample: RecordedSample) -> RecordedSample:
        return sample

    def write(self, number: int, samples: Sequence[RecordedSample]) -> list[Path]:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for sample in samples:
                row = json.dumps(self.rows[sample.sample_id], default=str).encode()
                for suffix, data in (("npz", sample.content), ("json", row)):
                    member = tarfile.TarInfo(f"{sample.sample_id}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        path = self.folder / f"samples-{number:06d}.tar"
        write_bytes(path, content.getvalue())
        return [path]


def _rows(layout: DatasetLayout, version: DatasetVersion, where: str) -> pl.DataFrame:
    rows = Manifest(layout).samples(version.number)
    if not where:
        return rows
    try:
        return rows.filter(pl.sql_expr(where))
    except pl.exceptions.PolarsError as error:
        raise PackError(
            f"The condition {where!r} cannot be used: {error}\nIt is one on the columns of the table samples, in SQL, "
            "such as: halo_mass > 3e13 AND split = 'train'"
        ) from error


def _identity(
    layout: DatasetLayout, version: DatasetVersion, where: str, pack_format: PackFormat, rows: pl.DataFrame
) -> PackIdentity:
    digests = rows["config_digest"].unique().sort().to_list()
    if len(digests) != 1:
        fulfilled = f" where {where}" if where else ""
        number = f"samples of {len(digests)} configurations: {', '.join(digests)}" if digests else "no sample"
        raise PackError(f"Version {version.number} of {layout.root} has {number}{fulfilled}; expected one to pack.")
    return PackIdentity(
        layout.set_name, version.number, digests[0], where, pack_format, rows.height, _rows_digest(rows)
    )


def _rows_digest(rows: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for sample_id, sha256 in rows.select("sample_id", "sha256").iter_rows():
        digest.update(f"{sample_id} {sha256}\n".encode())
    return digest.hexdigest()


def _name(identity: PackIdentity) -> str:
    filtered = f"_{hashlib.sha256(identity.where.encode()).hexdigest()[:8]}" if identity.where else ""
    return f"version_{identity.version}{filtered}.{identity.format}"


def _existing(folder: Path, identity: PackIdentity) -> Pack:
    found = read_identity(folder)
    if found != identity:
        differences = [
            f"{name} {getattr(found, name)} instead of {value}"
            for name, value in asdict(identity).items()
            if getattr(found, name) != value
        ]
        raise PackError(
            f"{folder} holds another pack: {', '.join(differences)}. Give another folder, or remove this one."
        )
    (folder / _DONE_FILE).unlink(missing_ok=True)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Pack(folder, identity, len(sizes), sum(sizes))


def _files_done(unfinished: Path, identity: PackIdentity) -> int:
    """Return how many shards a killed run has left; begin anew if they are of something else."""
    try:
        if read_identity(unfinished) == identity:
            remove_stale_temporaries(unfinished)
            for partial in unfinished.rglob(_PARTIAL):
                partial.unlink()
            return record_from_json(int, (unfinished / _DONE_FILE).read_bytes(), _DONE_FILE)
    except (PackError, OSError, RecordError):
        pass  # killed before the first shard was done
    shutil.rmtree(unfinished, ignore_errors=True)
    make_folder(unfinished)
    write_bytes(unfinished / IDENTITY_FILE, json.dumps(asdict(identity), indent=2).encode())
    return 0


def _stacked(key: str, shape: tuple[int, ...], samples: Sequence[RecordedSample]) -> np.ndarray:
    arrays = [sample.sample.arrays()[key] for sample in samples]
    for sample, array in zip(samples, arrays, strict=True):
        if array.shape != shape:
            raise PackError(
                f"The sample {sample.sample_id} has {key!r} of shape {array.shape}, those before it {shape}: they do "
                "not fit into one array. Pack them apart, with a condition."
            )
    return np.stack(arrays)


def _finish(unfinished: Path, folder: Path, rows: pl.DataFrame, version: int) -> None:
    table = io.BytesIO()
    rows.write_parquet(table, metadata={VERSION_KEY: str(version)})
    write_bytes(unfinished / ROWS_FILE, table.getvalue())
    checksums = {path.relative_to(unfinished).as_posix(): sha256_of(path) for path in _files(unfinished)}
    write_bytes(unfinished / CHECKSUMS_FILE, json.dumps(checksums, indent=2).encode())
    for path in (unfinished, *filter(Path.is_dir, unfinished.rglob("*"))):
        flush_folder(path)
    passing(Step.BEFORE_PACK)
    unfinished.rename(folder)
    flush_folder(folder.parent)


def _files(folder: Path) -> list[Path]:
    """Return the files whose checksums are kept: all but the list of checksums, and how far an unfinished pack is."""
    own = {folder / CHECKSUMS_FILE, folder / _DONE_FILE}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in own)


def _no_pack(folder: Path, reason: Exception) -> PackError:
    return PackError(
        f"{folder} is no pack of samples: {reason}. Expected a folder that `bind-data pack` has made, with "
        f"{IDENTITY_FILE} and {CHECKSUMS_FILE}."
    )
