"""What is known of many numbers from their parts: moments and counts, the same for any division and any order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Moments:
    """Count, sum and sum of squares of numbers, of which parts can be merged.

    A part's sums are taken about a pivot near its mean, in double precision, as in the second pass of a computation in
    two. From there on they are fractions, which add without rounding: the same parts give the same moments to the
    bit, whichever order they are merged in and whoever merges them, and a small spread about a large mean is kept.
    """

    count: int = 0
    total: Fraction = Fraction(0)
    """Sum of the numbers."""
    squares: Fraction = Fraction(0)
    """Sum of their squares."""

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """Return the moments of all values of an array, which must be finite."""
        numbers = np.asarray(values, dtype=np.float64)
        if numbers.size == 0:
            return cls()
        pivot = float(numbers.mean())
        deviations = numbers - pivot
        shift = Fraction(float(deviations.sum()))
        np.square(deviations, out=deviations)
        spread = Fraction(float(deviations.sum()))
        exact = Fraction(pivot)
        return cls(
            count=numbers.size,
            total=numbers.size * exact + shift,
            squares=spread + 2 * exact * shift + numbers.size * exact * exact,
        )

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of numbers together."""
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """Mean, rounded once; 0 without numbers."""
        return float(self.total / self.count) if self.count else 0.0

    @property
    def std(self) -> float:
        """Standard deviation (of the population: the squares are divided by the count); 0 without numbers."""
        if not self.count:
            return 0.0
        mean = self.total / self.count
        return float(np.sqrt(float(max(self.squares / self.count - mean * mean, Fraction(0)))))


_BIN_BITS = 12
"""Leading bits of a number's mantissa that its bin keeps."""
_DROPPED_BITS = np.int64(52 - _BIN_BITS)
_MAGNITUDE = np.int64(2**63 - 1)


@dataclass(frozen=True, eq=False)
class ValueCounts:
    """How often numbers fall into fixed bins, each 1/4096 to 1/8192 of its own value wide, with one bin for 0.

    A number's bin is given by its sign, its exponent and the first 12 bits of its mantissa, so that there is one for
    every finite number, of either sign, and no range to be chosen before the numbers are seen. Counts are whole
    numbers: merged in any order, they are the same.
    """

    bins: NDArray[np.int64]
    """In ascending order, as their numbers ascend; 0 is the bin of 0 (and of what is smaller than 3e-308)."""
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: ArrayLike) -> Self:
        """Return the counts of all values of an array, which must be finite."""
        bits = np.ascontiguousarray(values, dtype=np.float64).ravel().view(np.int64)
        bins = (bits & _MAGNITUDE) >> _DROPPED_BITS
        np.negative(bins, out=bins, where=bits < 0)
        nonzero = bins[bins != 0]  # most of a map of stars is 0, and need not be sorted
        own, counts = np.unique(nonzero, return_counts=True)
        if nonzero.size < bins.size:
            place = int(np.searchsorted(own, 0))
            own, counts = np.insert(own, place, 0), np.insert(counts, place, bins.size - nonzero.size)
        return cls(own.astype(np.int64), counts.astype(np.int64))

    @classmethod
    def merged(cls, parts: Iterable["ValueCounts"]) -> Self:
        """Return the counts of the numbers of all parts together."""
        found = list(parts)
        bins = np.concatenate([part.bins for part in found])
        counts = np.concatenate([part.counts for part in found])
        own, places = np.unique(bins, return_inverse=True)
        total = np.zeros(own.size, dtype=np.int64)
        np.add.at(total, places, counts)
        return cls(own, total)

    def quantiles(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values below which given shares of the numbers lie.

        Parameters
        ----------
        levels : (n,) array
            Shares, 0 to 1, ascending.

        Returns
        -------
        (n,) float64 array
            Ascending; within a bin, its numbers count as evenly spread. Level 0 is the lower edge of the lowest bin,
            and 1 the upper edge of the highest, so that all numbers lie in between; the bin of 0 is 0 alone.
        """
        magnitude = np.abs(self.bins)
        inner = (magnitude << _DROPPED_BITS).view(np.float64)
        outer = np.where(magnitude > 0, ((magnitude + 1) << _DROPPED_BITS).view(np.float64), 0.0)
        inner = np.where(magnitude > 0, inner, 0.0)
        lower = np.where(self.bins < 0, -outer, inner)
        upper = np.where(self.bins < 0, -inner, outer)
        reached = np.cumsum(self.counts)
        ranks = np.asarray(levels, dtype=np.float64) * reached[-1]
        place = np.minimum(np.searchsorted(reached, ranks), self.bins.size - 1)
        share = (ranks - (reached - self.counts)[place]) / self.counts[place]
        values = lower[place] + np.clip(share, 0.0, 1.0) * (upper - lower)[place]
        return np.maximum.accumulate(values)


@dataclass(frozen=True)
class ChannelTally:
    """What statistics need to know of the values of a channel, after its transform."""

    moments: Moments
    counts: ValueCounts | None = None
    """For a table of quantiles; None where none is wanted."""

    @classmethod
    def of(cls, transformed: ArrayLike, *, counted: bool = False) -> Self:
        """Return the tally of all values of an array, which must be finite; counted where a table is wanted."""
        return cls(Moments.of(transformed), ValueCounts.of(transformed) if counted else None)

    @classmethod
    def merged(cls, parts: Sequence["ChannelTally"]) -> Self:
        """Return the tally of all parts' values together."""
        moments = reduce(Moments.merge, (part.moments for part in parts), Moments())
        counts = [part.counts for part in parts if part.counts is not None]
        return cls(moments, ValueCounts.merged(counts) if counts else None)
