"""A table that spreads the values of a channel like a normal distribution, and brings them back."""

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bind_core.moments import ValueCounts

Floats = NDArray[np.float64]

_NORMAL = NormalDist()
_ENTRIES = 1001
_OUTERMOST = 5.0


class _Knots(NamedTuple):
    """The different values of a table, and the scores that stand for each."""

    values: Floats
    lowest: Floats
    highest: Floats
    middle: Floats


@dataclass(frozen=True)
class QuantileTable:
    """Values of a channel, after its transform, and the standard normal scores that they become.

    Between its entries the table is linear, and beyond them it goes on with its average slope, so that it can be
    inverted everywhere. A value that many numbers share (the 0 of most pixels of a map of stars) fills several
    entries: it becomes the one score in the middle of its share, and every score of its share comes back as that value.
    """

    values: tuple[float, ...]
    """Ascending."""
    scores: tuple[float, ...]
    """Strictly ascending, as many."""

    def __post_init__(self) -> None:
        values, scores = np.array(self.values, dtype=np.float64), np.array(self.scores, dtype=np.float64)
        if values.shape != scores.shape or values.size < 2:
            raise ValueError(
                f"A table of quantiles needs two or more values and as many scores, found {values.size} and "
                f"{scores.size}"
            )
        if not (np.isfinite(values).all() and np.isfinite(scores).all()):
            raise ValueError("A table of quantiles holds a value or score that is not finite")
        if not ((np.diff(values) >= 0).all() and (np.diff(scores) > 0).all()):
            raise ValueError("A table of quantiles must have ascending values and strictly ascending scores")

    @classmethod
    def of(cls, counts: ValueCounts) -> Self:
        """Return the table of numbers that were counted: 1,001 scores from -5 to 5, with all numbers in between."""
        scores = np.linspace(-_OUTERMOST, _OUTERMOST, _ENTRIES)
        levels = np.array([0.0, *map(_NORMAL.cdf, scores[1:-1]), 1.0])
        return cls(tuple(counts.quantiles(levels).tolist()), tuple(scores.tolist()))

    def apply(self, values: ArrayLike) -> Floats:
        """Return the scores of values."""
        numbers = np.asarray(values, dtype=np.float64)
        knots, first, last = self._knots, self.values[0], self.values[-1]
        place = np.clip(np.searchsorted(knots.values, numbers, side="right") - 1, 0, knots.values.size - 1)
        scores = knots.highest[place] + (numbers - knots.values[place]) * self._slopes[place]
        scores = np.where(numbers < first, self.scores[0] + (numbers - first) / self._outer, scores)
        scores = np.where(numbers > last, self.scores[-1] + (numbers - last) / self._outer, scores)
        return np.where(numbers == knots.values[place], knots.middle[place], scores)

    def invert(self, scores: ArrayLike) -> Floats:
        """Return the values that `apply` would have given these scores."""
        numbers = np.asarray(scores, dtype=np.float64)
        lowest, highest = self.scores[0], self.scores[-1]
        values = np.interp(numbers, self.scores, self.values)
        values = values + np.minimum(numbers - lowest, 0.0) * self._outer
        return values + np.maximum(numbers - highest, 0.0) * self._outer

    @property
    def _outer(self) -> float:
        """Values per score, beyond the ends."""
        return (self.values[-1] - self.values[0]) / (self.scores[-1] - self.scores[0]) or 1.0

    @cached_property
    def _knots(self) -> _Knots:
        scores = np.array(self.scores)
        values, first, counts = np.unique(self.values, return_index=True, return_counts=True)
        lowest, highest = scores[first], scores[first + counts - 1]
        middle = lowest.copy()
        for index in np.flatnonzero(counts > 1):
            below = 0.0 if index == 0 else _NORMAL.cdf(lowest[index])
            up_to = 1.0 if index == values.size - 1 else _NORMAL.cdf(highest[index])
            middle[index] = np.clip(_NORMAL.inv_cdf((below + up_to) / 2), lowest[index], highest[index])
        return _Knots(values, lowest, highest, middle)

    @cached_property
    def _slopes(self) -> Floats:
        """Scores per value, from each different value to the next."""
        knots = self._knots
        return np.append((knots.lowest[1:] - knots.highest[:-1]) / np.diff(knots.values), 0.0)
