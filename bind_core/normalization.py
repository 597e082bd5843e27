"""From mass maps to what a model sees, and back: ``log10(x + 1)``, then a z-score.

Training and inference both call the functions of this room; there is no second implementation to drift.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bind_core.errors import NormalizationMismatchError
from bind_core.sample import Sample

Floats = NDArray[np.float64]
Map = NDArray[np.float32]


def log_transform(masses: ArrayLike) -> Floats:
    """Return ``log10(x + 1)``, in double precision.

    Parameters
    ----------
    masses : array of any shape
        Msun/h per native pixel, 0 or more.

    Returns
    -------
    float64 array of the same shape
        0 where there is no mass.
    """
    return np.log10(np.asarray(masses, dtype=np.float64) + 1.0)


def inverse_log_transform(logs: ArrayLike) -> Floats:
    """Return ``10**y - 1``, the inverse of `log_transform`, in double precision."""
    return np.power(10.0, np.asarray(logs, dtype=np.float64)) - 1.0


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of numbers, of which parts can be merged.

    Merging follows Chan, Golub and LeVeque, "Algorithms for computing the sample variance" (The American
    Statistician 37, 242, 1983): exact for any division into parts, apart from rounding.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared deviations from the mean."""

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """Return the moments of all values of an array, computed in double precision."""
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.size == 0:
            return cls()
        mean = float(numbers.mean())
        return cls(numbers.size, mean, float(np.square(numbers - mean).sum()))

    def add(self, values: ArrayLike) -> "Moments":
        """Return the moments of these numbers and those of an array together."""
        return self.merge(Moments.of(values))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of numbers together."""
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        count = self.count + other.count
        shift = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + shift * (other.count / count),
            squares=self.squares + other.squares + shift * shift * (self.count * (other.count / count)),
        )

    @property
    def std(self) -> float:
        """Standard deviation (of the population: the squares are divided by the count); 0 without numbers."""
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0


@dataclass(frozen=True)
class ZScore:
    """A shift and a scale that give numbers the mean 0 and the standard deviation 1."""

    mean: float
    std: float
    """Greater than 0."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"A z-score needs a finite mean and a standard deviation > 0, found {self.mean} and {self.std}"
            )

    @classmethod
    def of(cls, moments: Moments) -> Self:
        """Return the z-score of numbers with these moments.

        Where all numbers are equal, as in the star maps of runs that formed none, the standard deviation counts
        as 1, so that they become 0 instead of undefined.
        """
        return cls(moments.mean, moments.std or 1.0)

    def apply(self, values: ArrayLike) -> Floats:
        """Return ``(values - mean) / std``."""
        return (np.asarray(values, dtype=np.float64) - self.mean) / self.std

    def invert(self, values: ArrayLike) -> Floats:
        """Return ``values * std + mean``."""
        return np.asarray(values, dtype=np.float64) * self.std + self.mean


@dataclass(frozen=True)
class NormalizationStats:
    """Mean and standard deviation of ``log10(x + 1)`` of every map, and the data set that they are of."""

    condition: ZScore
    large_scale: tuple[ZScore, ...]
    """Of the context maps, in ascending size."""
    dark_matter: ZScore
    gas: ZScore
    stars: ZScore
    manifest_version: int
    """Version of the table ``samples`` that the statistics were computed from."""
    config_digest: str
    """Digest of the configuration that its samples were made with."""
    n_samples: int
    """Samples of the train split that they were computed from."""

    @property
    def target(self) -> tuple[ZScore, ZScore, ZScore]:
        """The targets' statistics, in the order of `bind_core.sample.TARGET_CHANNELS`."""
        return (self.dark_matter, self.gas, self.stars)

    def as_rows(self) -> list[dict[str, str | float]]:
        """Return mean and standard deviation of log10(x + 1) of each map, as rows of a table."""
        named = {
            "condition": self.condition,
            **{f"large_scale[{index}]": score for index, score in enumerate(self.large_scale)},
            "target: dark matter": self.dark_matter,
            "target: gas": self.gas,
            "target: stars": self.stars,
        }
        return [{"map": name, "mean": score.mean, "std": score.std} for name, score in named.items()]

    def require(self, config_digest: str, *, force: bool = False) -> None:
        """Make sure that these statistics belong to maps of a certain configuration.

        Parameters
        ----------
        config_digest : str
            Digest of the configuration that the maps were made with.
        force : bool
            Use them for those maps regardless.

        Raises
        ------
        NormalizationMismatchError
            If they were computed from maps of another configuration, and `force` is not set.
        """
        if config_digest != self.config_digest and not force:
            raise NormalizationMismatchError(
                f"The normalization statistics were computed from maps of configuration {self.config_digest[:12]}… "
                f"({self.n_samples:,} samples, manifest version {self.manifest_version}), but the maps at hand are of "
                f"configuration {config_digest[:12]}…. A model would see shifted inputs. Compute the statistics of "
                "this data set (`bind-data normalize`), or set force to use them regardless."
            )


@dataclass(frozen=True)
class NormalizedSample:
    """The maps of a sample as a model sees them: dimensionless, float32."""

    condition: Map
    """(npix, npix)."""
    target: Map
    """(3, npix, npix)."""
    large_scale: Map
    """(n_context, npix, npix)."""


def normalize(
    sample: Sample, stats: NormalizationStats, config_digest: str, *, force: bool = False
) -> NormalizedSample:
    """Return a sample's maps as a model sees them.

    Parameters
    ----------
    sample : Sample
        Maps in Msun/h per native pixel.
    stats : NormalizationStats
        Of the data set that the model is trained on.
    config_digest : str
        Digest of the configuration that the sample was made with.
    force : bool
        Accept statistics of another configuration.

    Raises
    ------
    NormalizationMismatchError
        If the statistics belong to another configuration, or to another number of context maps.
    """
    condition, large_scale = normalize_input(sample.condition, sample.large_scale, stats, config_digest, force=force)
    return NormalizedSample(condition, _normalized(sample.target, stats.target), large_scale)


def normalize_input(
    condition: ArrayLike,
    large_scale: ArrayLike,
    stats: NormalizationStats,
    config_digest: str,
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
    config_digest : str
        Digest of the configuration that the maps were made with.
    force : bool
        Accept statistics of another configuration.

    Returns
    -------
    condition, large_scale : float32 arrays
        Dimensionless, of the same shapes; equal to the bit to those of `normalize`.

    Raises
    ------
    NormalizationMismatchError
        If the statistics belong to another configuration, or to another number of context maps.
    """
    stats.require(config_digest, force=force)
    context = np.asarray(large_scale)
    if len(context) != len(stats.large_scale):
        raise NormalizationMismatchError(
            f"There are {len(context)} context maps, but the normalization statistics are of "
            f"{len(stats.large_scale)}. Use those of a data set with the same context_sizes."
        )
    return _normalized(np.asarray(condition)[np.newaxis], (stats.condition,))[0], _normalized(
        context, stats.large_scale
    )


def denormalize_target(target: ArrayLike, stats: NormalizationStats, config_digest: str, *, force: bool = False) -> Map:
    """Return the mass maps that a model's output stands for: the inverse of `normalize` for the targets.

    Parameters
    ----------
    target : array of shape (..., 3, npix, npix)
        Dark matter, gas and stars as a model sees them.
    stats : NormalizationStats
        Of the data set that the model was trained on.
    config_digest : str
        Digest of the configuration that the maps are for.
    force : bool
        Accept statistics of another configuration.

    Returns
    -------
    (..., 3, npix, npix) float32 array
        Msun/h per native pixel. What comes out below 0, because a model fell short of the value that stands for
        no mass, is 0.

    Raises
    ------
    NormalizationMismatchError
        If the statistics belong to another configuration.
    """
    stats.require(config_digest, force=force)
    values = np.asarray(target)
    masses = np.empty(values.shape, dtype=np.float32)
    for channel, score in enumerate(stats.target):
        mass = inverse_log_transform(score.invert(values[..., channel, :, :]))
        masses[..., channel, :, :] = np.maximum(mass, 0.0)
    return masses


def _normalized(maps: NDArray, scores: tuple[ZScore, ...]) -> Map:
    seen = np.empty(maps.shape, dtype=np.float32)
    for channel, score in enumerate(scores):
        seen[channel] = score.apply(log_transform(maps[channel]))
    return seen
