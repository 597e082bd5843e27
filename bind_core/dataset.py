"""Samples for training: a map-style data set over single files or shards, which a `torch.utils.data.DataLoader` takes.

Imports torch only to learn which worker it runs in, and does without it.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from bind_core.archives import ArchiveError, decode_arrays
from bind_core.errors import BindDataError
from bind_core.normalization import DatasetIdentity, NormalizationStats, normalize
from bind_core.sample import CHANNELS_KEY, Sample
from bind_core.shard_files import ShardedArray
from bind_core.splits import Split

Arrays = dict[str, NDArray]
"""The arrays of one sample, by the names of its contract."""

_MAPS = ("condition", "target", "large_scale")
_ARRAYS = "samples.zarr"
_ROWS = "samples.parquet"
VERSION_KEY = "manifest_version"
"""Where the metadata of a table of rows says which version of the manifest they are of."""


class DatasetError(BindDataError):
    """Samples that cannot be read for training."""


class Reader(Protocol):
    """Where samples come from."""

    rows: pl.DataFrame
    """A row of the manifest for each sample, in order."""
    manifest_version: int | None
    """Version of the manifest that the rows are of; None if it is not known."""

    def read(self, numbers: Sequence[int]) -> list[Arrays]:
        """Return samples by their numbers, counted from 0 in the order of the rows."""


class FileReader:
    """Reads the ``.npz`` of a data set.

    Parameters
    ----------
    root : Path
        Root of the data set.
    rows : DataFrame, optional
        Rows of its table ``samples``, at least ``path``, ``split`` and ``config_digest``; by default those of
        ``samples.parquet``, which `bind-data card` writes.
    manifest_version : int, optional
        Version of the manifest that `rows` are of, if it is known; ``samples.parquet`` says it.

    Raises
    ------
    DatasetError
        If there is no such file.
    """

    def __init__(self, root: Path, rows: pl.DataFrame | None = None, manifest_version: int | None = None) -> None:
        self.root = Path(root)
        self.manifest_version = _recorded_version(self.root) if rows is None else manifest_version
        self.rows = _read_rows(self.root, "bind-data card") if rows is None else rows
        self._paths = _paths_below(self.root, self.rows)

    def read(self, numbers: Sequence[int]) -> list[Arrays]:
        """Return samples by their numbers."""
        return [self._read(self.root / self._paths[number]) for number in numbers]

    def _read(self, path: Path) -> Arrays:
        try:
            return decode_arrays(path.read_bytes(), path)
        except (OSError, ArchiveError) as error:
            raise DatasetError(
                f"Cannot read a sample: {str(error).rstrip('.')}. `bind-data audit --depth verified` says what else is "
                "damaged, `bind-data repair` makes it again."
            ) from error


class ShardReader:
    """Reads a pack of Zarr shards.

    Parameters
    ----------
    folder : Path
        What `bind-data pack` has made.

    Raises
    ------
    DatasetError
        If it is no such pack.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.rows = _read_rows(self.folder, "bind-data pack")
        self.manifest_version = _recorded_version(self.folder)

    def read(self, numbers: Sequence[int]) -> list[Arrays]:
        """Return samples by their numbers."""
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        in_order = [numbers[position] for position in order]
        samples: list[Arrays] = [{} for _ in numbers]
        try:
            for array in self._arrays.values():
                array.announce(in_order)
            for position, number in zip(order, in_order, strict=True):
                samples[position] = {name: array.read(number) for name, array in self._arrays.items()} | self._channels
        except (OSError, ValueError, RuntimeError) as error:
            raise DatasetError(
                f"Cannot read the pack {self.folder}: {error}. `bind-data pack --verify` says what is damaged; remove "
                "it and pack again."
            ) from error
        return samples

    @cached_property
    def _arrays(self) -> dict[str, ShardedArray]:
        return {name: ShardedArray(self.folder / _ARRAYS / name) for name in Sample.numbers()}

    @cached_property
    def _channels(self) -> Arrays:
        """The names of the target's channels, where there are more than those of every sample."""
        names = self._arrays["target"].attributes.get(CHANNELS_KEY)
        return {} if names is None else {CHANNELS_KEY: np.array(names, dtype=np.str_)}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open, for workers that are spawned."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_arrays", "_channels")}


class Augmentation:
    """Mirrors and turns the maps of a sample at random, by one of the eight symmetries of a square.

    All maps are changed alike, and ``rotation`` with them: it then maps from the box frame to the changed frame, and
    has the determinant -1 where the maps are mirrored. Nothing is shifted or wrapped, since windows are not periodic:
    the halo, which sits on node npix / 2, sits on node npix / 2 - 1 along an axis that was reversed.

    Parameters
    ----------
    seed : int, optional
        Makes the choices reproducible in one process; each worker of a DataLoader draws its own.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._random: np.random.Generator | None = None
        self._drawn_for: tuple[int, int | None] | None = None

    def __call__(self, sample: Arrays) -> Arrays:
        """Return a sample, changed at random."""
        return self.changed(sample, int(self._generator().integers(8)))

    @staticmethod
    def changed(sample: Arrays, symmetry: int) -> Arrays:
        """Return a sample, changed by one of the symmetries.

        Parameters
        ----------
        sample : dict of str to array
            The maps' last two axes are x' and y'.
        symmetry : int
            0 to 7: quarter turns from x' to y' (0 to 3), and, from 4 on, x' reversed before.
        """
        if not 0 <= symmetry < 8:
            raise ValueError(f"There are eight symmetries, 0 to 7; found {symmetry}")
        turns, mirrored = symmetry % 4, symmetry >= 4
        frame = np.linalg.matrix_power(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), turns)
        if mirrored:
            frame = frame @ np.diag([-1.0, 1.0, 1.0])
        changed = dict(sample)
        for name in _MAPS:
            maps = sample[name][..., ::-1, :] if mirrored else sample[name]
            changed[name] = np.ascontiguousarray(np.rot90(maps, turns, axes=(-2, -1)))
        changed["rotation"] = frame @ sample["rotation"]
        return changed

    def _generator(self) -> np.random.Generator:
        """Return this process's generator: forked workers would otherwise all draw the same."""
        worker_seed = _worker_seed()
        if self._random is None or self._drawn_for != (os.getpid(), worker_seed):
            self._drawn_for = (os.getpid(), worker_seed)
            known = [number for number in (self.seed, worker_seed) if number is not None]
            self._random = np.random.default_rng(known or None)
        return self._random


class Normalized:
    """Turns the maps of a sample into what a model sees, by `bind_core.normalization.normalize`.

    Parameters
    ----------
    stats : NormalizationStats
        Of the data set that the model is trained on; with `NormalizationStats.by_quantiles`, by its tables.
    identity : DatasetIdentity or str
        Of the data set that the samples are of, or the digest of its configuration.
    force : bool
        Accept statistics of another configuration or version.

    Raises
    ------
    NormalizationMismatchError
        If the statistics are of another configuration or version; when called, if a sample has other maps.
    """

    def __init__(self, stats: NormalizationStats, identity: DatasetIdentity | str, *, force: bool = False) -> None:
        stats.require(identity, force=force)
        self.stats = stats
        self.identity = DatasetIdentity.of(identity)
        self.force = force

    def __call__(self, sample: Arrays) -> Arrays:
        """Return a sample with its maps normalized."""
        seen = normalize(Sample.from_arrays(sample), self.stats, self.identity, force=self.force)
        return sample | {"condition": seen.condition, "target": seen.target, "large_scale": seen.large_scale}


class SampleDataset:
    """Samples by number, as dictionaries of arrays.

    Parameters
    ----------
    reader : Reader
        Where they come from.
    split : Split or str, optional
        ``train`` or ``test``; both by default.
    where : str
        A further condition on a row, in polars' SQL, e.g. ``halo_mass > 3e13``.
    transform : callable, optional
        Called with each sample last, e.g. a `Normalized`.
    augmentation : Augmentation, optional
        Called with each sample first.

    Raises
    ------
    DatasetError
        If the condition is none, or no sample fulfils it.
    """

    def __init__(
        self,
        reader: Reader,
        *,
        split: Split | str | None = None,
        where: str = "",
        transform: Callable[[Arrays], Mapping[str, Any]] | None = None,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.reader = reader
        self.transform = transform
        self.augmentation = augmentation
        rows = reader.rows.with_row_index("number")
        conditions = [] if split is None else [f"split = '{Split(split)}'"]
        for condition in [*conditions, *([where] if where else [])]:
            try:
                rows = rows.filter(pl.sql_expr(condition))
            except pl.exceptions.PolarsError as error:
                raise DatasetError(f"The condition {condition!r} cannot be used: {error}") from error
        if rows.is_empty():
            raise DatasetError(
                f"None of {reader.rows.height:,} samples is in the split {split or 'train or test'}"
                f"{f' and fulfils {where!r}' if where else ''}."
            )
        self._numbers = rows["number"].to_list()
        self.rows = rows.drop("number")
        """A row of the manifest for each sample, in order."""

    @property
    def config_digest(self) -> str:
        """Digest of the configuration that the samples were made with.

        Raises
        ------
        DatasetError
            If there are several.
        """
        digests = self.rows["config_digest"].unique().sort().to_list()
        if len(digests) != 1:
            raise DatasetError(f"The samples are of {len(digests)} configurations: {', '.join(digests)}.")
        return str(digests[0])

    @property
    def identity(self) -> DatasetIdentity:
        """The data set that the samples are of, as far as their rows and their reader say.

        Raises
        ------
        DatasetError
            If the samples are of several configurations.
        """
        set_name = str(self.rows["simulation"][0]).rpartition("_")[0] if "simulation" in self.rows.columns else ""
        return DatasetIdentity(self.config_digest, set_name, self.reader.manifest_version)

    def normalized(self, stats: NormalizationStats, *, force: bool = False) -> Self:
        """Return the same samples with normalized maps.

        Parameters
        ----------
        stats : NormalizationStats
            Of the data set that the model is trained on.
        force : bool
            Accept statistics of another configuration or version.

        Raises
        ------
        NormalizationMismatchError
            If the statistics are of another configuration or version.
        """
        other = type(self).__new__(type(self))
        other.__dict__ = self.__dict__ | {"transform": Normalized(stats, self.identity, force=force)}
        return other

    @property
    def target_channels(self) -> tuple[str, ...]:
        """What the channels of the samples' ``target`` are called, as the first sample says."""
        (first,) = self.reader.read(self._numbers[:1])
        return Sample.from_arrays(first).target_channels

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._numbers)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return a sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """Return several samples, which a DataLoader asks for at once."""
        return [self._finished(sample) for sample in self.reader.read([self._numbers[index] for index in indices])]

    def _finished(self, sample: Arrays) -> Mapping[str, Any]:
        if self.augmentation is not None:
            sample = self.augmentation(sample)
        finished = sample if self.transform is None else self.transform(sample)
        # Names of channels are text, which no batch can hold.
        return {name: value for name, value in finished.items() if name != CHANNELS_KEY}


def _read_rows(folder: Path, command: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(folder / _ROWS)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise DatasetError(
            f"Cannot read {folder / _ROWS}, the rows of the samples: {error}. `{command}` writes it."
        ) from error


def _recorded_version(folder: Path) -> int | None:
    """Return the version of the manifest that the rows in a folder are of, if their file says so."""
    try:
        return int(pl.read_parquet_metadata(folder / _ROWS)[VERSION_KEY])
    except (OSError, KeyError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None


def _paths_below(root: Path, rows: pl.DataFrame) -> list[str]:
    """Return the samples' paths, none of which leads out of the data set."""
    if "path" not in rows.columns or rows.schema["path"] != pl.String:
        raise DatasetError(f"The rows of the samples in {root} have no column path that holds text.")
    paths: list[str | None] = rows["path"].to_list()
    for path in paths:
        if path is None or "\0" in path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise DatasetError(
                f"The rows of the samples in {root} have the path {path!r}; expected one below that folder. They were "
                "damaged or tampered with: write them anew with `bind-data card`."
            )
    return [path for path in paths if path is not None]


def _worker_seed() -> int | None:
    """Return the seed that torch gives this worker for this epoch; None outside of workers."""
    torch_data = sys.modules.get("torch.utils.data")
    worker = None if torch_data is None else torch_data.get_worker_info()
    return None if worker is None else int(worker.seed)
