"""Normalization statistics of a data set: computed from its train split, and kept in a small file for each channel."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from bind_core.errors import BindDataError
from bind_core.moments import ChannelTally
from bind_core.normalization import ChannelStats, NormalizationStats
from bind_core.quantiles import QuantileTable
from bind_core.sample import TARGET_CHANNELS, Sample
from bind_core.splits import Split
from bind_core.transforms import ChannelTransform, ChannelTransforms, TransformKind
from storage.archives import ArchiveError, decode_arrays, encode_arrays
from storage.faults import Step, passing
from storage.files import remove_stale_temporaries, write_bytes
from storage.layout import DatasetLayout
from storage.manifest import Manifest, recorded_configuration
from storage.recorded import RecordedSample, map_recorded

_FILES = {
    "dark_matter": ("dark_matter_normalization_stats.npz", "dm"),
    "gas": ("gas_normalization_stats.npz", "gas"),
    "stars": ("stellar_normalization_stats.npz", "star"),
}
"""Channels of the contract -> file, and the prefix of its keys, as readers in use expect them."""

_MERGED_AT_ONCE = 64
"""Samples whose tallies are merged in one step; bounds what waits in memory."""

SampleTally = dict[str, tuple[ChannelTally, ...]]
"""A tally for each map of a channel, by the channel's name."""


class StatisticsError(BindDataError):
    """Normalization statistics that cannot be computed or read."""


def statistics_file(channel: str) -> str:
    """Return the name of the file that holds the statistics of a target channel."""
    return _FILES[channel][0] if channel in _FILES else f"{channel}_normalization_stats.npz"


def compute_statistics(
    layout: DatasetLayout,
    version: int | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
    quantiles: Collection[str] = (),
) -> NormalizationStats:
    """Compute the normalization statistics of a data set in one pass over the samples of its train split.

    Every file is held against the digest in the manifest, so that the statistics are those of the recorded
    data. The transforms are those that its ``dataset.yaml`` declares. The result is the same to the bit for any
    number of threads and any order in which samples were committed.

    Parameters
    ----------
    layout : DatasetLayout
        The data set.
    version : int, optional
        An earlier version of the table ``samples``; the latest by default.
    threads : int
        Threads that read, decompress and compute.
    progress : callable, optional
        Called with the number of samples done and the number of all.
    quantiles : collection of str
        Channels that get a table of quantiles besides: ``condition``, ``large_scale``, ``stars``, ….

    Returns
    -------
    NormalizationStats
        Means and standard deviations of the transformed values of all pixels of a map.

    Raises
    ------
    StatisticsError
        If the train split is empty or of several configurations, or has no such channel.
    RecordedSampleError
        If a sample's file is missing or differs from the manifest.
    SampleError
        If a sample's file cannot be read as one.
    ConfigurationError
        If ``dataset.yaml`` cannot be read.
    """
    manifest = Manifest(layout)
    version = manifest.version if version is None else version
    train = _train_split(layout, manifest.samples(version if version >= 0 else None))
    config = recorded_configuration(layout.root)
    transforms = ChannelTransforms().by_channel() if config is None else config.channel_transforms
    if unknown := sorted(set(quantiles) - transforms.keys()):
        raise StatisticsError(
            f"The data set {layout.root} has no channel {unknown[0]!r} to make a table of quantiles of; expected some "
            f"of {', '.join(transforms)}."
        )

    def tallied(recorded: RecordedSample) -> SampleTally:
        return tally_sample(recorded.sample, transforms, quantiles, recorded.sample_id)

    tallies = map_recorded(layout, train, tallied, threads)
    total: list[SampleTally] = []
    done = 0
    while part := list(itertools.islice(tallies, _MERGED_AT_ONCE)):
        total = [merge_tallies([*total, *part])]
        for _ in part:
            done += 1
            if progress is not None:
                progress(done, train.height)
    stats = {name: tuple(ChannelStats.of(tally, transforms[name]) for tally in own) for name, own in total[0].items()}
    return NormalizationStats(
        condition=stats.pop("condition")[0],
        large_scale=stats.pop("large_scale"),
        target={name: own for name, (own,) in stats.items()},
        manifest_version=version,
        config_digest=train["config_digest"][0],
        n_samples=train.height,
        set_name=layout.set_name,
    )


def tally_sample(
    sample: Sample,
    transforms: Mapping[str, ChannelTransform],
    quantiles: Collection[str] = (),
    sample_id: str = "",
) -> SampleTally:
    """Return what statistics need to know of a sample.

    Parameters
    ----------
    sample : Sample
        The maps.
    transforms : mapping of str to ChannelTransform
        Of ``condition``, ``large_scale``, and the target's channels.
    quantiles : collection of str
        Channels whose values are counted, for a table of quantiles.
    sample_id : str
        Which sample it is, for error messages.

    Raises
    ------
    StatisticsError
        If the sample has a channel without a transform.
    """
    if undeclared := [name for name in sample.target_channels if name not in transforms]:
        raise StatisticsError(
            f"The sample {sample_id} has the target channel {undeclared[0]}, whose transform the data set's "
            f"dataset.yaml does not declare; expected it among the extra_fields there, found {', '.join(transforms)}."
        )
    maps: dict[str, Sequence[NDArray]] = {
        "condition": (sample.condition,),
        "large_scale": tuple(sample.large_scale),
        **{name: (values,) for name, values in zip(sample.target_channels, sample.target, strict=True)},
    }
    return {
        name: tuple(ChannelTally.of(transforms[name].apply(each), counted=name in quantiles) for each in own)
        for name, own in maps.items()
    }


def merge_tallies(parts: Sequence[SampleTally]) -> SampleTally:
    """Return the tally of several samples, or of parts of a data set, together; their order changes no bit.

    Raises
    ------
    StatisticsError
        If they are of different numbers of maps.
    """
    first = parts[0]
    for part in parts:
        for name, tallied in first.items():
            if part.keys() != first.keys() or len(part[name]) != len(tallied):
                shapes = [", ".join(f"{len(maps)} of {key}" for key, maps in each.items()) for each in (first, part)]
                raise StatisticsError(
                    f"Some samples have other maps than others ({shapes[0]}; {shapes[1]}), so that they have no common "
                    "statistics."
                )
    return {
        name: tuple(ChannelTally.merged([part[name][index] for part in parts]) for index in range(len(tallied)))
        for name, tallied in first.items()
    }


def _train_split(layout: DatasetLayout, everything: pl.DataFrame) -> pl.DataFrame:
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
    return train


def write_statistics(stats: NormalizationStats, folder: Path) -> list[Path]:
    """Write normalization statistics, one file per target channel, each atomically.

    Parameters
    ----------
    stats : NormalizationStats
        What to write.
    folder : Path
        Where the files go; made if it is missing.

    Returns
    -------
    list of Path
        The files. Each holds the statistics of its target (for instance ``dm_mag_mean`` and ``dm_mag_std``), those of
        the inputs (``input_mag_*`` and, one number per context map, ``large_scale_mag_*``), ``manifest_version``,
        ``config_digest``, ``set_name``, ``n_samples`` and ``target_channels``. The keys ``*_mag_transform`` and
        ``*_mag_scale`` are each channel's transform, ``*_mag_quantiles`` and ``*_mag_quantile_scores`` its table of
        quantiles, if there is one.
    """
    common: dict[str, ArrayLike] = {
        **_channel_keys("input", (stats.condition,), of_several=False),
        **_channel_keys("large_scale", stats.large_scale, of_several=True),
        "manifest_version": np.int64(stats.manifest_version),
        "config_digest": np.str_(stats.config_digest),
        "set_name": np.str_(stats.set_name),
        "n_samples": np.int64(stats.n_samples),
        "target_channels": np.array(stats.target_channels, dtype=np.str_),
    }
    remove_stale_temporaries(folder)
    written = []
    for channel, own in stats.target.items():
        path = folder / statistics_file(channel)
        write_bytes(path, encode_arrays(_channel_keys(_prefix(channel), (own,), of_several=False) | common))
        written.append(path)
        passing(Step.WITHIN_NORMALIZATION)
    return written


def read_statistics(folder: Path) -> NormalizationStats:
    """Read the normalization statistics that `write_statistics` wrote.

    Files that declare no transform, as older ones, are of ``log10(x + 1)``.

    Raises
    ------
    StatisticsError
        If a file is missing, damaged or lacks a value, or if the files are of different data sets or versions.
    """
    channels: tuple[str, ...] = TARGET_CHANNELS
    target: dict[str, ChannelStats] = {}
    shared: dict[str, dict[str, NDArray]] = {}
    path = folder
    try:
        for position in itertools.count():
            if position == len(channels):
                break
            channel = channels[position]
            path = folder / statistics_file(channel)
            arrays = decode_arrays(path.read_bytes(), path)
            (target[channel],) = _channel_stats(arrays, _prefix(channel))
            shared[path.name] = arrays
            if position == 0 and "target_channels" in arrays:
                channels = _channel_names(arrays["target_channels"])
        expected = _common(folder, shared)
        path = folder / statistics_file(TARGET_CHANNELS[0])
        (condition,) = _channel_stats(expected, "input")
        return NormalizationStats(
            condition=condition,
            large_scale=_channel_stats(expected, "large_scale"),
            target=target,
            manifest_version=int(expected["manifest_version"]),
            config_digest=str(expected["config_digest"]),
            n_samples=int(expected["n_samples"]),
            set_name=str(expected.get("set_name", "")),
        )
    except (OSError, ArchiveError) as error:
        raise StatisticsError(
            f"Cannot read the normalization statistics {path}: {error}. `bind-data normalize` writes them."
        ) from error
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise StatisticsError(
            f"{path} is no file of normalization statistics: {type(error).__name__}: {error}. "
            "Write it anew with `bind-data normalize`."
        ) from error


def _common(folder: Path, shared: Mapping[str, dict[str, NDArray]]) -> dict[str, NDArray]:
    """Return what all files say alike."""
    (first, expected), *others = shared.items()
    for name, found in others:
        for key in expected.keys() | found.keys():
            if key not in found or key not in expected or not np.array_equal(expected[key], found[key]):
                raise StatisticsError(
                    f"The normalization statistics in {folder} are of different runs: {key} is {expected.get(key)} in "
                    f"{first} and {found.get(key)} in {name}. Write all of them anew with `bind-data normalize`."
                )
    return expected


def _channel_names(names: NDArray) -> tuple[str, ...]:
    """Return the channels that a file lists, which name files to be read next."""
    channels = tuple(map(str, names))
    if channels[: len(TARGET_CHANNELS)] != TARGET_CHANNELS or len(set(channels)) < len(channels):
        raise ValueError(f"target_channels are {', '.join(channels)}; expected {', '.join(TARGET_CHANNELS)} first")
    if not all(name.isidentifier() and name.isascii() for name in channels):
        raise ValueError(f"target_channels {channels[len(TARGET_CHANNELS) :]} are no names of channels")
    return channels


def _prefix(channel: str) -> str:
    return _FILES[channel][1] if channel in _FILES else channel


def _channel_keys(prefix: str, stats: Sequence[ChannelStats], *, of_several: bool) -> dict[str, ArrayLike]:
    """Return the statistics of one map as numbers, or of several, with a common transform, as arrays."""
    keys: dict[str, ArrayLike] = {
        f"{prefix}_mag_mean": np.array([own.mean for own in stats], dtype=np.float64),
        f"{prefix}_mag_std": np.array([own.std for own in stats], dtype=np.float64),
    }
    tables = [own.quantiles for own in stats if own.quantiles is not None]
    if tables:
        keys[f"{prefix}_mag_quantiles"] = np.array([table.values for table in tables], dtype=np.float64)
        keys[f"{prefix}_mag_quantile_scores"] = np.array([table.scores for table in tables], dtype=np.float64)
    if not of_several:
        keys = {name: np.asarray(values)[0] for name, values in keys.items()}
    if stats:
        keys[f"{prefix}_mag_transform"] = np.str_(stats[0].transform.kind)
        keys[f"{prefix}_mag_scale"] = np.float64(stats[0].transform.scale)
    return keys


def _channel_stats(arrays: dict[str, NDArray], prefix: str) -> tuple[ChannelStats, ...]:
    """Take the statistics of one map, or of several, out of what a file holds, and return them.

    Raises
    ------
    KeyError, TypeError, ValueError
        If they are not as they should be.
    """
    # What a file of one map holds as a number is an array of one here.
    means, stds = (np.atleast_1d(_number(arrays, f"{prefix}_mag_{name}", prefix)) for name in ("mean", "std"))
    transform = ChannelTransform()
    if f"{prefix}_mag_transform" in arrays:
        kind, scale = arrays.pop(f"{prefix}_mag_transform"), arrays.pop(f"{prefix}_mag_scale")
        transform = ChannelTransform(kind=TransformKind(str(kind)), scale=float(scale))
    tables: list[QuantileTable | None] = [None] * len(means)
    if f"{prefix}_mag_quantiles" in arrays:
        values, scores = arrays.pop(f"{prefix}_mag_quantiles"), arrays.pop(f"{prefix}_mag_quantile_scores")
        pairs = zip(np.atleast_2d(values).tolist(), np.atleast_2d(scores).tolist(), strict=True)
        tables = [QuantileTable(tuple(own), tuple(own_scores)) for own, own_scores in pairs]
    return tuple(
        ChannelStats(float(mean), float(std), transform, table)
        for mean, std, table in zip(means, stds, tables, strict=True)
    )


def _number(arrays: dict[str, NDArray], key: str, prefix: str) -> NDArray:
    value = arrays.pop(key)
    expected = 1 if prefix == "large_scale" else 0
    if value.ndim != expected or value.dtype.kind != "f":
        raise ValueError(f"{key} has shape {value.shape} and dtype {value.dtype}; expected {expected} axes of float64")
    return value
