"""Normalization statistics of a data set: computed from its train split, and kept in three small files."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from bind_core.errors import BindDataError
from bind_core.normalization import Moments, NormalizationStats, ZScore, log_transform
from bind_core.splits import Split
from storage.archives import ArchiveError, decode_arrays, encode_arrays
from storage.faults import Step, passing
from storage.files import remove_stale_temporaries, write_bytes
from storage.layout import DatasetLayout
from storage.manifest import Manifest
from storage.recorded import RecordedSample, map_recorded

STATISTICS_FILES = {
    "dark_matter": ("dark_matter_normalization_stats.npz", "dm"),
    "gas": ("gas_normalization_stats.npz", "gas"),
    "stars": ("stellar_normalization_stats.npz", "star"),
}
"""Target channel -> file, and the prefix of its keys, as readers in use expect them."""

_SampleMoments = tuple[Moments, ...]


class StatisticsError(BindDataError):
    """Normalization statistics that cannot be computed or read."""


def compute_statistics(
    layout: DatasetLayout,
    version: int | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> NormalizationStats:
    """Compute the normalization statistics of a data set in one pass over the samples of its train split.

    Every file is held against the digest in the manifest, so that the statistics are those of the recorded
    data. The result does not depend on the number of threads, nor on the order in which samples were committed.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    version : int, optional
        An earlier version of the table ``samples``; the latest by default.
    threads : int
        Threads that read and decompress.
    progress : callable, optional
        Called with the number of samples done and the number of all.

    Returns
    -------
    NormalizationStats
        Means and standard deviations of ``log10(x + 1)`` over all pixels of a map.

    Raises
    ------
    StatisticsError
        If the train split is empty or of several configurations.
    RecordedSampleError
        If a sample's file is missing or differs from the manifest.
    SampleError
        If a sample's file cannot be read as one.
    """
    manifest = Manifest(layout)
    version = manifest.version if version is None else version
    everything = manifest.samples(version if version >= 0 else None)
    train = everything.filter(pl.col("split") == str(Split.TRAIN))
    if train.is_empty():
        raise StatisticsError(
            f"The data set {layout.root} has no sample in its train split (and {everything.height:,} in its test "
            "split), so there is nothing to compute normalization statistics from. Generate more simulations, or "
            "lower test_fraction in a new data set; statistics never come from the test split."
        )
    digests = train["config_digest"].unique().sort().to_list()
    if len(digests) > 1:
        raise StatisticsError(
            f"The train split of {layout.root} holds samples of {len(digests)} configurations: {', '.join(digests)}. "
            "Their statistics would belong to none of them."
        )
    totals: _SampleMoments | None = None
    for done, moments in enumerate(map_recorded(layout, train, _moments, threads), start=1):
        if totals is not None and len(moments) != len(totals):
            raise StatisticsError(
                f"The sample {train['sample_id'][done - 1]} has {len(moments)} maps, those before it {len(totals)}."
            )
        totals = moments if totals is None else tuple(a.merge(b) for a, b in zip(totals, moments, strict=True))
        if progress is not None:
            progress(done, train.height)
    condition, dark_matter, gas, stars, *large_scale = map(ZScore.of, totals or ())
    return NormalizationStats(
        condition=condition,
        large_scale=tuple(large_scale),
        dark_matter=dark_matter,
        gas=gas,
        stars=stars,
        manifest_version=version,
        config_digest=digests[0],
        n_samples=train.height,
    )


def write_statistics(stats: NormalizationStats, folder: Path) -> list[Path]:
    """Write normalization statistics, one file per target, each atomically.

    Parameters
    ----------
    stats : NormalizationStats
        What to write.
    folder : Path
        Where the files go; made if it is missing.

    Returns
    -------
    list of Path
        The three files. Each holds the statistics of its target (for instance ``dm_mag_mean`` and
        ``dm_mag_std``), those of the inputs (``input_mag_*`` and, one number per context map,
        ``large_scale_mag_*``), ``manifest_version``, ``config_digest`` and ``n_samples``.
    """
    common: dict[str, ArrayLike] = {
        "input_mag_mean": np.float64(stats.condition.mean),
        "input_mag_std": np.float64(stats.condition.std),
        "large_scale_mag_mean": np.array([score.mean for score in stats.large_scale], dtype=np.float64),
        "large_scale_mag_std": np.array([score.std for score in stats.large_scale], dtype=np.float64),
        "manifest_version": np.int64(stats.manifest_version),
        "config_digest": np.str_(stats.config_digest),
        "n_samples": np.int64(stats.n_samples),
    }
    remove_stale_temporaries(folder)
    written = []
    for channel, (name, prefix) in STATISTICS_FILES.items():
        score: ZScore = getattr(stats, channel)
        own: dict[str, ArrayLike] = {
            f"{prefix}_mag_mean": np.float64(score.mean),
            f"{prefix}_mag_std": np.float64(score.std),
        }
        write_bytes(folder / name, encode_arrays(own | common))
        written.append(folder / name)
        passing(Step.WITHIN_NORMALIZATION)
    return written


def read_statistics(folder: Path) -> NormalizationStats:
    """Read the normalization statistics that `write_statistics` wrote.

    Raises
    ------
    StatisticsError
        If a file is missing, damaged or lacks a value, or if the three files are of different data sets or
        versions.
    """
    scores: dict[str, ZScore] = {}
    shared: dict[str, dict[str, NDArray]] = {}
    for channel, (name, prefix) in STATISTICS_FILES.items():
        path = folder / name
        try:
            arrays = decode_arrays(path.read_bytes(), path)
            scores[channel] = _score(arrays.pop(f"{prefix}_mag_mean"), arrays.pop(f"{prefix}_mag_std"))
        except (OSError, ArchiveError) as error:
            raise StatisticsError(
                f"Cannot read the normalization statistics {path}: {error}. `bind-data normalize` writes them."
            ) from error
        except (KeyError, ValueError, TypeError) as error:
            raise StatisticsError(_incomplete(path, error)) from error
        shared[name] = arrays
    (first, expected), *others = shared.items()
    for name, found in others:
        for key in expected.keys() | found.keys():
            if key not in found or key not in expected or not np.array_equal(expected[key], found[key]):
                raise StatisticsError(
                    f"The normalization statistics in {folder} are of different runs: {key} is {expected.get(key)} in "
                    f"{first} and {found.get(key)} in {name}. Write all three anew with `bind-data normalize`."
                )
    try:
        return NormalizationStats(
            condition=_score(expected["input_mag_mean"], expected["input_mag_std"]),
            large_scale=tuple(
                itertools.starmap(
                    _score, zip(expected["large_scale_mag_mean"], expected["large_scale_mag_std"], strict=True)
                )
            ),
            **scores,
            manifest_version=int(expected["manifest_version"]),
            config_digest=str(expected["config_digest"]),
            n_samples=int(expected["n_samples"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise StatisticsError(_incomplete(folder / first, error)) from error


def _moments(recorded: RecordedSample) -> _SampleMoments:
    sample = recorded.sample
    maps: Sequence[NDArray] = (sample.condition, *sample.target, *sample.large_scale)
    return tuple(Moments.of(log_transform(each)) for each in maps)


def _score(mean: NDArray, std: NDArray) -> ZScore:
    return ZScore(float(mean), float(std))


def _incomplete(path: Path, error: Exception) -> str:
    return (
        f"{path} is no file of normalization statistics: {type(error).__name__}: {error}. "
        "Write it anew with `bind-data normalize`."
    )
