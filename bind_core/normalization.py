"""From maps to what a model sees, and back: each channel's transform, then a z-score or a table of quantiles.

Training and inference both call the functions of this room; there is no second implementation to drift.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bind_core.errors import NormalizationMismatchError
from bind_core.moments import ChannelTally
from bind_core.quantiles import QuantileTable
from bind_core.sample import Sample
from bind_core.transforms import ChannelTransform, TransformKind

Floats = NDArray[np.float64]
Map = NDArray[np.float32]

_ROUNDING = 1e-12
"""A standard deviation that is smaller, relative to the mean, is that of equal numbers."""


@dataclass(frozen=True)
class DatasetIdentity:
    """What tells the data sets apart that maps, or statistics, are of."""

    config_digest: str
    """Digest of the configuration that decides what is in a sample."""
    set_name: str = ""
    """Set of simulations; empty if it is not known."""
    manifest_version: int | None = None
    """Version of the table ``samples``; None if it is not known."""

    def __str__(self) -> str:
        """Return the identity in words."""
        version = "(unknown)" if self.manifest_version is None else self.manifest_version
        return (
            f"configuration {self.config_digest[:12]}…, set {self.set_name or '(unknown)'}, manifest version {version}"
        )

    @classmethod
    def of(cls, identity: "DatasetIdentity | str") -> "DatasetIdentity":
        """Return an identity as it is, or that of a configuration's digest."""
        return identity if isinstance(identity, DatasetIdentity) else cls(identity)


@dataclass(frozen=True)
class ChannelStats:
    """How the values of a channel become a model's, and back."""

    mean: float
    """Mean of the transformed values."""
    std: float
    """Standard deviation of the transformed values; greater than 0."""
    transform: ChannelTransform = field(default_factory=ChannelTransform)
    quantiles: QuantileTable | None = None
    """Table of the transformed values, if one was asked for when they were computed."""
    by_quantiles: bool = False
    """Whether the table takes the place of the z-score."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"A z-score needs a finite mean and a standard deviation > 0, found {self.mean} and {self.std}"
            )
        if self.by_quantiles and self.quantiles is None:
            raise ValueError("Values without a table of quantiles cannot be normalized by one")

    @classmethod
    def of(cls, tally: ChannelTally, transform: ChannelTransform) -> Self:
        """Return the statistics of a channel whose transformed values have this tally.

        Where all numbers are equal, as in the star maps of runs that formed none, the standard deviation counts
        as 1, so that they become 0 instead of undefined.
        """
        mean, std = tally.moments.mean, tally.moments.std
        table = None if tally.counts is None else QuantileTable.of(tally.counts)
        return cls(mean, std if std > _ROUNDING * abs(mean) else 1.0, transform, table)

    def apply(self, values: ArrayLike) -> Floats:
        """Return what a model sees of values, in double precision."""
        seen = self.transform.apply(values)
        if self.by_quantiles and self.quantiles is not None:
            return self.quantiles.apply(seen)
        seen -= self.mean
        seen /= self.std
        return seen

    def invert(self, seen: ArrayLike) -> Floats:
        """Return the values that `apply` makes these of, in double precision.

        Values that a logarithm was taken of are never negative: what comes out below 0, because a model fell short of
        the value that stands for nothing, is 0.
        """
        if self.by_quantiles and self.quantiles is not None:
            transformed = self.quantiles.invert(seen)
        else:
            transformed = np.asarray(seen, dtype=np.float64) * self.std + self.mean
        values = self.transform.invert(transformed)
        return np.maximum(values, 0.0) if self.transform.kind is TransformKind.LOG else values


@dataclass(frozen=True)
class NormalizationStats:
    """Statistics of every channel, and the data set that they are of."""

    condition: ChannelStats
    large_scale: tuple[ChannelStats, ...]
    """Of the context maps, in ascending size."""
    target: Mapping[str, ChannelStats]
    """Of the target's channels by name, in their order."""
    manifest_version: int
    """Version of the table ``samples`` that the statistics were computed from."""
    config_digest: str
    """Digest of the configuration that its samples were made with."""
    n_samples: int
    """Samples of the train split that they were computed from."""
    set_name: str = ""
    """Set of their simulations; empty if the statistics do not say."""

    @property
    def target_channels(self) -> tuple[str, ...]:
        """Names of the target's channels, in their order."""
        return tuple(self.target)

    @property
    def identity(self) -> DatasetIdentity:
        """The data set that they are of."""
        return DatasetIdentity(self.config_digest, self.set_name, self.manifest_version)

    def as_rows(self) -> list[dict[str, str | float]]:
        """Return each map's transform, mean, standard deviation and number of quantiles, as rows of a table."""
        named = {
            "condition": self.condition,
            **{f"large_scale[{index}]": stats for index, stats in enumerate(self.large_scale)},
            **{f"target: {name.replace('_', ' ')}": stats for name, stats in self.target.items()},
        }
        return [
            {
                "map": name,
                "transform": str(stats.transform),
                "mean": stats.mean,
                "std": stats.std,
                "quantiles": 0 if stats.quantiles is None else len(stats.quantiles.values),
            }
            for name, stats in named.items()
        ]

    def by_quantiles(self, channels: Iterable[str]) -> "NormalizationStats":
        """Return these statistics with tables of quantiles in the place of z-scores.

        Parameters
        ----------
        channels : iterable of str
            Of ``condition``, ``large_scale`` and `target_channels`.

        Raises
        ------
        NormalizationMismatchError
            If there is no such channel, or no table was computed for it.
        """
        changed = self
        for channel in channels:
            known = ("condition", "large_scale", *self.target)
            if channel not in known:
                raise NormalizationMismatchError(
                    f"The normalization statistics have no channel {channel!r}; expected one of {', '.join(known)}."
                )
            if channel == "condition":
                changed = replace(changed, condition=_tabulated(changed.condition, channel))
            elif channel == "large_scale":
                context = tuple(_tabulated(stats, channel) for stats in changed.large_scale)
                changed = replace(changed, large_scale=context)
            else:
                own = {channel: _tabulated(changed.target[channel], channel)}
                changed = replace(changed, target={**changed.target, **own})
        return changed

    def require(self, identity: DatasetIdentity | str, *, force: bool = False) -> None:
        """Make sure that these statistics belong to maps of a certain data set.

        Parameters
        ----------
        identity : DatasetIdentity or str
            Of the data set that the maps are of, or the digest of its configuration.
        force : bool
            Use them for those maps regardless.

        Raises
        ------
        NormalizationMismatchError
            If they were computed from maps of another configuration, or from another version of the manifest (where
            the maps' version is known), and `force` is not set.
        """
        maps = DatasetIdentity.of(identity)
        same_version = maps.manifest_version in (None, self.manifest_version)
        if not (maps.config_digest == self.config_digest and same_version) and not force:
            raise NormalizationMismatchError(
                f"The normalization statistics were computed from another data set, or another state of it: "
                f"{self.identity} ({self.n_samples:,} samples); the maps at hand are of {maps}. A model would see "
                "shifted inputs. Compute the statistics of this one (`bind-data normalize`, with its --version if it "
                "is not the latest), or set force to use them regardless."
            )

    def require_channels(self, found: Sequence[str] | int, identity: DatasetIdentity | str) -> None:
        """Make sure that these statistics have the channels of a target.

        Parameters
        ----------
        found : sequence of str or int
            Their names, or how many there are.
        identity : DatasetIdentity or str
            Of the data set that the maps are of, or the digest of its configuration.

        Raises
        ------
        NormalizationMismatchError
            If there are others, or in another order.
        """
        alike = found == len(self.target) if isinstance(found, int) else tuple(found) == self.target_channels
        if not alike:
            there = found if isinstance(found, int) else f"{len(found)} ({', '.join(found)})"
            raise NormalizationMismatchError(
                f"The normalization statistics are of {len(self.target)} target channels "
                f"({', '.join(self.target)}; {self.identity}), but the maps at hand have {there} "
                f"({DatasetIdentity.of(identity)}). Use those of a data set with the same extra_fields."
            )


@dataclass(frozen=True)
class NormalizedSample:
    """The maps of a sample as a model sees them: dimensionless, float32."""

    condition: Map
    """(npix, npix)."""
    target: Map
    """(n_target, npix, npix): dark matter, gas, stars, then further fields."""
    large_scale: Map
    """(n_context, npix, npix)."""


def normalize(
    sample: Sample, stats: NormalizationStats, identity: DatasetIdentity | str, *, force: bool = False
) -> NormalizedSample:
    """Return a sample's maps as a model sees them.

    Parameters
    ----------
    sample : Sample
        Maps in their own units per native pixel.
    stats : NormalizationStats
        Of the data set that the model is trained on.
    identity : DatasetIdentity or str
        Of the data set that the sample is of, or the digest of its configuration.
    force : bool
        Accept statistics of another configuration or version.

    Raises
    ------
    NormalizationMismatchError
        If the statistics belong to another configuration or version, or to another number of maps.
    """
    condition, large_scale = normalize_input(sample.condition, sample.large_scale, stats, identity, force=force)
    stats.require_channels(sample.target_channels, identity)
    return NormalizedSample(condition, _normalized(sample.target, tuple(stats.target.values())), large_scale)


def normalize_input(
    condition: ArrayLike,
    large_scale: ArrayLike,
    stats: NormalizationStats,
    identity: DatasetIdentity | str,
    *,
    force: bool = False,
) -> tuple[Map, Map]:
    """Return the maps of a dark-matter-only run as a model sees them, which is all that inference has.

    Parameters
    ----------
    condition : array of shape (npix, npix)
        Msun/h per native pixel.
    large_scale : array of shape (n_context, npix, npix)
        Msun/h per native pixel.
    stats : NormalizationStats
        Of the data set that the model was trained on.
    identity : DatasetIdentity or str
        Of the data set that the maps are of, or the digest of the configuration that they were made with.
    force : bool
        Accept statistics of another configuration or version.

    Returns
    -------
    condition, large_scale : float32 arrays
        Dimensionless, of the same shapes; equal to the bit to those of `normalize`.

    Raises
    ------
    NormalizationMismatchError
        If the statistics belong to another configuration or version, or to another number of context maps.
    """
    stats.require(identity, force=force)
    context = np.asarray(large_scale)
    if len(context) != len(stats.large_scale):
        raise NormalizationMismatchError(
            f"There are {len(context)} context maps ({DatasetIdentity.of(identity)}), but the normalization "
            f"statistics are of {len(stats.large_scale)} ({stats.identity}). Use those of a data set with the same "
            "context_sizes."
        )
    return _normalized(np.asarray(condition)[np.newaxis], (stats.condition,))[0], _normalized(
        context, stats.large_scale
    )


def denormalize_target(
    target: ArrayLike, stats: NormalizationStats, identity: DatasetIdentity | str, *, force: bool = False
) -> Map:
    """Return the maps that a model's output stands for: the inverse of `normalize` for the targets.

    Parameters
    ----------
    target : array of shape (..., n_target, npix, npix)
        Dark matter, gas, stars and further fields as a model sees them.
    stats : NormalizationStats
        Of the data set that the model was trained on.
    identity : DatasetIdentity or str
        Of the data set that the maps are for, or the digest of its configuration.
    force : bool
        Accept statistics of another configuration or version.

    Returns
    -------
    (..., n_target, npix, npix) float32 array
        Msun/h per native pixel for masses, and each further field in its own unit. Where a channel's transform is a
        logarithm, nothing is below 0 (see `ChannelStats.invert`).

    Raises
    ------
    NormalizationMismatchError
        If the statistics belong to another configuration or version, or to another number of channels.
    """
    stats.require(identity, force=force)
    values = np.asarray(target)
    stats.require_channels(values.shape[-3], identity)
    maps = np.empty(values.shape, dtype=np.float32)
    for channel, own in enumerate(stats.target.values()):
        maps[..., channel, :, :] = own.invert(values[..., channel, :, :])
    return maps


def _tabulated(stats: ChannelStats, channel: str) -> ChannelStats:
    if stats.quantiles is None:
        raise NormalizationMismatchError(
            f"The normalization statistics hold no table of quantiles of {channel!r}. "
            f"`bind-data normalize --quantiles {channel}` computes one."
        )
    return replace(stats, by_quantiles=True)


def _normalized(maps: NDArray, stats: tuple[ChannelStats, ...]) -> Map:
    seen = np.empty(maps.shape, dtype=np.float32)
    for channel, (values, own) in enumerate(zip(maps, stats, strict=True)):
        seen[channel] = own.apply(values)
    return seen
